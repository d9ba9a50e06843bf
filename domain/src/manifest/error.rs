//! What is wrong with an `envforge.yml`: one error per mistake, with its place, what was found and what would be right.
//!
//! Owns the error types and their texts' frame. Not here: finding the mistakes (`document`, `reader`).

use std::fmt;

/// Where something stands in the file. Both count from 1; a column counts characters, not bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// The kind of a mistake. `code` is what APIs and `--json` show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Not YAML.
    Syntax,
    /// YAML that this format leaves out: anchors, aliases, tags, merge keys, several documents.
    UnsupportedYaml,
    UnknownKey,
    DuplicateKey,
    MissingKey,
    /// A mapping where a text belongs, and the like.
    WrongType,
    /// Unquoted, and YAML readers disagree on what it means.
    Ambiguous,
    /// Of the right type, but not a value that is allowed here.
    InvalidValue,
    /// Outside of a limit: too many, too long, too short.
    OutOfLimits,
    /// Two places of the file contradict each other.
    Conflict,
}

impl ErrorKind {
    pub const fn code(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnsupportedYaml => "unsupported_yaml",
            Self::UnknownKey => "unknown_key",
            Self::DuplicateKey => "duplicate_key",
            Self::MissingKey => "missing_key",
            Self::WrongType => "wrong_type",
            Self::Ambiguous => "ambiguous",
            Self::InvalidValue => "invalid_value",
            Self::OutOfLimits => "out_of_limits",
            Self::Conflict => "conflict",
        }
    }
}

/// One mistake. Displays as `7:5: services.web.readiness.htp: found an unknown key `htp`; did you mean `http`?`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {}found {found}; {expected}", .position.line, .position.column, PathPart(.path))]
pub struct ManifestError {
    pub position: Position,
    /// Keys from the top, joined with dots, list items as `[0]`; empty for the file as a whole.
    pub path: String,
    pub kind: ErrorKind,
    /// Never an item of `secrets`, in case somebody wrote a value there.
    pub found: String,
    /// What would be right.
    pub expected: String,
}

struct PathPart<'a>(&'a str);

impl fmt::Display for PathPart<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(formatter, "{}: ", self.0) }
    }
}

/// Everything that is wrong with a file: at least one error, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestErrors {
    errors: Vec<ManifestError>,
    omitted: usize,
}

impl ManifestErrors {
    /// Most errors that are listed; the rest is counted.
    pub const LISTED_MAX: usize = 20;

    pub(super) fn of(mut errors: Vec<ManifestError>) -> Self {
        errors.sort_by_key(|error| error.position);
        let omitted = errors.len().saturating_sub(Self::LISTED_MAX);
        errors.truncate(Self::LISTED_MAX);
        Self { errors, omitted }
    }

    /// The first `LISTED_MAX` errors, in the order of the file.
    pub fn errors(&self) -> &[ManifestError] {
        &self.errors
    }

    /// How many more there are.
    pub const fn omitted(&self) -> usize {
        self.omitted
    }
}

impl fmt::Display for ManifestErrors {
    /// One line per error, each with `envforge.yml:` in front as compilers do.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "envforge.yml:{error}")?;
        }
        match self.omitted {
            0 => Ok(()),
            1 => write!(formatter, "\nand 1 more error"),
            more => write!(formatter, "\nand {more} more errors"),
        }
    }
}

impl std::error::Error for ManifestErrors {}

/// A key as it stands in a path: `join`ed to those above it. Bounded, because every error below it shows it.
pub(super) fn join(path: &str, key: &str) -> String {
    let mut joined = String::with_capacity(path.len() + 1 + key.len().min(CHARS_MAX));
    joined.push_str(path);
    if !path.is_empty() {
        joined.push('.');
    }
    push_shown(&mut joined, key);
    joined
}

/// `text` in backticks, fit for one line of a terminal: shortened, control characters escaped.
pub(super) fn quoted(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(CHARS_MAX) + 2);
    shown.push('`');
    push_shown(&mut shown, text);
    shown.push('`');
    shown
}

/// Most characters of the file's own text that a message repeats at once.
const CHARS_MAX: usize = 60;

fn push_shown(out: &mut String, text: &str) {
    // Directional overrides could make the message read as something else.
    let hidden = |character: char| matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    for (index, character) in text.chars().enumerate() {
        if index == CHARS_MAX {
            out.push('…');
            break;
        }
        if character.is_control() || hidden(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
}
