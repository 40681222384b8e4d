//! Reading one table of the file: every key is asked for by name, with its type and range; what
//! nobody asked for is reported as unknown. All problems are collected, not only the first.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, suggestion};

/// Collects what is wrong while the file is read.
#[derive(Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Notes one.
    pub fn add(&self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.0.borrow_mut().push(Problem { span, what: what.into(), help: help.into() });
    }

    /// All that were noted, in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems
    }
}

/// A value with the place it stands at.
pub struct Placed<T> {
    /// The value.
    pub value: T,
    /// Its bytes in the file.
    pub span: Range<usize>,
}

/// One table of the file, read key by key.
pub struct Section<'a> {
    /// How the table is called in messages, for example `[node.alpha]`.
    pub name: String,
    /// Where its header or value stands.
    pub span: Range<usize>,
    table: &'a DeTable<'a>,
    known: Vec<&'static str>,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// Starts to read a table.
    pub fn new(
        name: String,
        span: Range<usize>,
        table: &'a DeTable<'a>,
        problems: &'a Problems,
    ) -> Self {
        Self { name, span, table, known: Vec::new(), problems }
    }

    /// The raw value of a key.
    pub fn raw(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// The place of a key's name, for messages about the key itself.
    pub fn key_span(&self, key: &str) -> Range<usize> {
        let found = self.table.iter().find(|(name, _)| name.get_ref() == key);
        found.map_or(self.span.clone(), |(name, _)| name.span())
    }

    /// Every key of the table with the places of its name and of its value.
    pub fn keys(&self) -> Vec<(&'a str, Range<usize>, Range<usize>)> {
        let entries = self.table.iter();
        entries.map(|(name, value)| (name.get_ref().as_ref(), name.span(), value.span())).collect()
    }

    /// A string.
    pub fn string(&mut self, key: &'static str) -> Option<Placed<String>> {
        let value = self.raw(key)?;
        self.as_string(key, value)
    }

    /// A path, which must be absolute.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.string(key)?;
        let path = absolute(self.problems, key, &text)?;
        Some(path)
    }

    /// A number in a range.
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.raw(key)?;
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|digits| i64::from_str_radix(digits.as_str(), digits.radix()).ok());
        match number.and_then(|number| u64::try_from(number).ok()) {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let what = format!(
                    "`{key}` must be a whole number from {} to {}",
                    range.start(),
                    range.end()
                );
                self.problems.add(value.span(), what, "");
                None
            }
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let value = self.raw(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            self.problems.add(value.span(), format!("`{key}` must be true or false"), "");
        }
        boolean
    }

    /// One of a few words.
    pub fn word(&mut self, key: &'static str, words: &[&'static str]) -> Option<&'static str> {
        let text = self.string(key)?;
        let found = words.iter().copied().find(|word| *word == text.value);
        if found.is_none() {
            let what = format!("`{key}` cannot be \"{}\"", text.value);
            let help = match suggestion(&text.value, words) {
                Some(word) => format!("did you mean \"{word}\"?"),
                None => format!("it is one of: {}", words.join(", ")),
            };
            self.problems.add(text.span, what, help);
        }
        found
    }

    /// A string or a list of strings.
    pub fn strings(&mut self, key: &'static str) -> Option<Vec<Placed<String>>> {
        let value = self.raw(key)?;
        let Some(list) = value.get_ref().as_array() else {
            return Some(vec![self.as_string(key, value)?]);
        };
        list.iter().map(|item| self.as_string(key, item)).collect()
    }

    /// A table below this one.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'a>> {
        let value = self.raw(key)?;
        let span = self.key_span(key);
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(format!("[{key}]"), span, table, self.problems)),
            None => {
                self.problems.add(value.span(), format!("`{key}` must be a table"), "");
                None
            }
        }
    }

    /// All tables of the form `[key.NAME]`, in the order of their names.
    pub fn named_sections(&mut self, key: &'static str) -> Vec<(Placed<String>, Section<'a>)> {
        let Some(value) = self.raw(key) else { return Vec::new() };
        let Some(tables) = value.get_ref().as_table() else {
            let help = format!("write [{key}.NAME]");
            self.problems.add(value.span(), format!("`{key}` must be a table"), help);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (name, value) in tables.iter() {
            let Some(table) = value.get_ref().as_table() else {
                let what = format!("`{key}.{}` must be a table", name.get_ref());
                self.problems.add(name.span(), what, format!("write [{key}.NAME]"));
                continue;
            };
            let title = format!("[{key}.{}]", name.get_ref());
            let placed = Placed { value: name.get_ref().to_string(), span: name.span() };
            sections.push((placed, Section::new(title, name.span(), table, self.problems)));
        }
        sections
    }

    /// Notes a problem of this table.
    pub fn problem(&self, span: Range<usize>, what: impl Into<String>, help: impl Into<String>) {
        self.problems.add(span, what, help);
    }

    /// Where problems are noted, for readers of single values.
    pub fn problems(&self) -> &'a Problems {
        self.problems
    }

    /// Reports every key that nobody asked for. To be called last.
    pub fn finish(self) {
        for (name, _) in self.table.iter() {
            let word: &str = name.get_ref();
            if self.known.contains(&word) {
                continue;
            }
            let help = match suggestion(word, &self.known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("the keys here are: {}", self.known.join(", ")),
            };
            self.problems.add(name.span(), format!("unknown key `{word}` in {}", self.name), help);
        }
    }

    fn as_string(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Placed<String>> {
        match value.get_ref().as_str() {
            Some(text) => Some(Placed { value: text.to_owned(), span: value.span() }),
            None => {
                let what = format!("`{key}` must be a string");
                self.problems.add(value.span(), what, "write it in quotes");
                None
            }
        }
    }
}

/// Takes a path that is given as text; a relative one is a problem, because the daemon's working
/// directory is nobody's business.
pub fn absolute(problems: &Problems, key: &str, text: &Placed<String>) -> Option<PathBuf> {
    let path = PathBuf::from(&text.value);
    if !path.is_absolute() {
        let what = format!("`{key}` must be an absolute path");
        problems.add(text.span.clone(), what, format!("write \"/.../{}\"", text.value));
        return None;
    }
    Some(path)
}
