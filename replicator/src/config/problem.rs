//! What is wrong with a configuration file, and how it is shown: file, line, column, the line
//! itself with a mark below the place, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the file it is about.
    pub span: Range<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do about it; empty when `what` says it all.
    pub help: String,
}

/// A configuration file that cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// It cannot be read.
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Its contents are wrong; all that was found, in the order of the file.
    Wrong {
        /// Which file.
        path: PathBuf,
        /// Its text, for showing the lines.
        text: String,
        /// At least one.
        problems: Vec<Problem>,
    },
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source, .. } => Some(source),
            Self::Wrong { .. } => None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, source } => {
                write!(out, "cannot read the configuration {}: {source}", path.display())?;
                if source.kind() == std::io::ErrorKind::NotFound {
                    write!(out, "; name the right file with --config FILE")?;
                }
                Ok(())
            }
            Self::Wrong { path, text, problems } => {
                for (index, problem) in problems.iter().enumerate() {
                    if index > 0 {
                        writeln!(out)?;
                    }
                    show(out, path, text, problem)?;
                }
                Ok(())
            }
        }
    }
}

impl Problem {
    /// In one line, for what is only a warning.
    pub(super) fn one_line(&self, path: &Path, text: &str) -> String {
        let place = format!("{}{}", place(path, text, &self.span), self.what);
        if self.help.is_empty() { place } else { format!("{place}; {}", self.help) }
    }
}

/// `FILE:LINE:COLUMN: `
pub(super) fn place(path: &Path, text: &str, span: &Range<usize>) -> String {
    let (line, column) = line_and_column(text, span.start);
    format!("{}:{line}:{column}: ", path.display())
}

fn show(out: &mut fmt::Formatter<'_>, path: &Path, text: &str, problem: &Problem) -> fmt::Result {
    let (line, column) = line_and_column(text, problem.span.start);
    write!(out, "{}:{line}:{column}: {}", path.display(), problem.what)?;
    if let Some(shown) = text.lines().nth(line - 1) {
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let start = line_start(text, problem.span.start);
        let in_line = problem.span.end.min(start + shown.len()).max(problem.span.start);
        let marked = text.get(problem.span.start..in_line).unwrap_or("");
        let marks = "^".repeat(marked.chars().count().max(1));
        write!(out, "\n {number} | {shown}\n {margin} | {}{marks}", " ".repeat(column - 1))?;
    }
    if !problem.help.is_empty() {
        write!(out, "\n   help: {}", problem.help)?;
    }
    Ok(())
}

/// Line and column of a byte of the text, both counted from 1, columns in characters.
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let start = line_start(text, offset);
    let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
    let before = text.get(start..offset.min(text.len())).unwrap_or("");
    (line, before.chars().count() + 1)
}

fn line_start(text: &str, offset: usize) -> usize {
    let offset = offset.min(text.len());
    text.as_bytes()[..offset].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

/// The candidate that a mistyped word most likely meant, if one is close enough.
pub fn suggestion<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .iter()
        .map(|candidate| (edit_distance(word, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut rows: Vec<Vec<usize>> = vec![(0..=right.len()).collect()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replace = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let swapped =
                i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
            if swapped {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}
