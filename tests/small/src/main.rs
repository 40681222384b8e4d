//! `small`: an exhaustive search of small worlds around the shipping core. See `--help`.

use std::process::{Command, ExitCode};
use std::time::Instant;

use replicator_core::defect::{DEFECTS, switch_on};
use small::scene::{SCENES, Scene};
use small::search::{deepest, search, tell, tried};

const HELP: &str = "\
small: every order of frames, disk operations and faults in small worlds of two replicas

  small [SCENE...]          search these, or all of the short run
  small --all               all scenes, the long ones too
  small --states N          at most so many states of each scene (default 3000000)
  small --defect NAME       break a rule on purpose: a counterexample must be found
  small --mutants           every defect in turn: which are found, and how short the path is
  small --list              the scenes
  small --deepest           the story of the longest way, to see what goes on and on
  small --quiet             of a counterexample only its length
exit codes: 0 searched, 1 a promise was broken, 2 usage, 3 a core broke its own assertion,
4 not exhausted";

struct Options {
    states_max: usize,
    quiet: bool,
    deepest: bool,
    all: bool,
    mutants: bool,
    scenes: Vec<&'static Scene>,
    defect: Option<String>,
}

fn main() -> ExitCode {
    match options() {
        Ok(options) if options.mutants => mutants(&options),
        Ok(options) => {
            report_panics(options.quiet);
            if let Some(name) = &options.defect {
                let defect = DEFECTS.iter().find(|defect| format!("{defect:?}") == *name);
                let Some(defect) = defect else { return usage("no such defect") };
                switch_on(*defect);
            }
            run(&options)
        }
        Err(why) => usage(&why),
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("{why}\n{HELP}");
    ExitCode::from(2)
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        states_max: 3_000_000,
        quiet: false,
        deepest: false,
        all: false,
        mutants: false,
        scenes: Vec::new(),
        defect: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--states" => {
                let number = words.next().and_then(|number| number.parse().ok());
                options.states_max = number.ok_or("--states needs a number")?;
            }
            "--defect" => options.defect = Some(words.next().ok_or("--defect needs a name")?),
            "--mutants" => options.mutants = true,
            "--all" => options.all = true,
            "--deepest" => options.deepest = true,
            "--quiet" => options.quiet = true,
            "--list" => {
                for scene in SCENES {
                    println!("{:24} {}", scene.name, scene.about);
                }
                std::process::exit(0);
            }
            "--help" | "-h" => {
                println!("{HELP}");
                std::process::exit(0);
            }
            name => {
                let scene = SCENES.iter().find(|scene| scene.name == name);
                options.scenes.push(scene.ok_or_else(|| format!("no scene {name}"))?);
            }
        }
    }
    if options.scenes.is_empty() {
        options.scenes = SCENES.iter().filter(|scene| scene.is_short || options.all).collect();
    }
    Ok(options)
}

fn run(options: &Options) -> ExitCode {
    let mut all_exhausted = true;
    for scene in &options.scenes {
        let began = Instant::now();
        match search(scene, options.states_max) {
            Ok(found) => {
                all_exhausted &= found.is_exhausted;
                println!(
                    "{:24} {:9} states {:9} transitions  depth {:3}  {}  {:.1} s",
                    scene.name,
                    found.states,
                    found.transitions,
                    found.depth,
                    if found.is_exhausted { "exhausted" } else { "NOT exhausted" },
                    began.elapsed().as_secs_f64()
                );
                if options.deepest {
                    println!("{}", tell(scene, &deepest(), false));
                }
            }
            Err(failure) => {
                println!("{}: broken in {} steps: {}", scene.name, failure.path.len(), failure.why);
                if !options.quiet {
                    println!("{}", tell(scene, &failure.path, false));
                }
                return ExitCode::from(1);
            }
        }
    }
    if !all_exhausted {
        println!("some scenes were not exhausted: raise --states, or look with --deepest");
        return ExitCode::from(4);
    }
    ExitCode::SUCCESS
}

/// A core that breaks its own assertion ends the search with the path that led there.
fn report_panics(quiet: bool) {
    std::panic::set_hook(Box::new(move |info| {
        let why = info.to_string().replace('\n', " ");
        match tried() {
            Some((scene, path)) => {
                println!("{}: asserted in {} steps: {why}", scene.name, path.len());
                if !quiet {
                    println!("{}", tell(&scene, &path, true));
                }
            }
            None => println!("before the search: {why}"),
        }
        std::process::exit(3);
    }));
}

/// Every defect in a process of its own.
fn mutants(options: &Options) -> ExitCode {
    let program = std::env::current_exe().expect("this program");
    let mut found = 0;
    for defect in DEFECTS {
        let name = format!("{defect:?}");
        let mut child = Command::new(&program);
        child.args(["--quiet", "--defect", &name, "--states", &options.states_max.to_string()]);
        child.args(options.scenes.iter().map(|scene| scene.name));
        let output = child.output().expect("this program runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let verdict = match output.status.code() {
            Some(1 | 3) => {
                found += 1;
                text.lines().last().unwrap_or_default()
            }
            _ => "-",
        };
        println!("{name:26} {verdict}");
    }
    println!("{found} of {} defects found", DEFECTS.len());
    if found >= FOUND_MIN { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Fewer found defects than this are a hole in the search.
const FOUND_MIN: usize = 8;
