//! `envforge.yml` of a checkout: read and checked here first, so that a mistake is shown with its line before anything is sent.
//!
//! Not here: what is right and wrong in it (`envforge_domain::manifest`).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use envforge_domain::limits::MANIFEST_BYTES_MAX;
use envforge_domain::manifest::{Manifest, ManifestErrors, Route};
use envforge_domain::slug::ServiceName;

use super::failure::Failure;
use super::output::Output;

pub(crate) const FILE: &str = "envforge.yml";

/// A valid manifest with its text.
#[derive(Clone, Debug)]
pub(crate) struct ManifestFile {
    pub text: String,
    pub manifest: Manifest,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Unusable {
    Missing(PathBuf),
    Unreadable(PathBuf, String),
    Invalid { path: PathBuf, text: String, errors: ManifestErrors },
}

impl ManifestFile {
    pub(crate) fn read(root: &Path) -> Result<Self, Unusable> {
        let path = root.join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unusable::Missing(path)),
            Err(error) => return Err(Unusable::Unreadable(path, error.to_string())),
        };
        let mut text = String::new();
        // One byte more than allowed, so that the parser sees that there is too much.
        let limit = u64::try_from(MANIFEST_BYTES_MAX + 1).unwrap_or(u64::MAX);
        if let Err(error) = file.take(limit).read_to_string(&mut text) {
            return Err(Unusable::Unreadable(path, error.to_string()));
        }
        match Manifest::parse(&text) {
            Ok(manifest) => Ok(Self { text, manifest }),
            Err(errors) => Err(Unusable::Invalid { path, text, errors }),
        }
    }

    /// The services that have a host of their own.
    pub(crate) fn web_services(&self) -> impl Iterator<Item = &ServiceName> {
        let web = |route: &Route| matches!(route, Route::Web { .. });
        self.manifest.services.iter().filter(move |service| web(&service.route)).map(|service| &service.name)
    }
}

impl Unusable {
    /// For the end of a command. An invalid file is shown on standard error first, with carets.
    pub(crate) fn into_failure(self, output: &Output) -> Failure {
        match self {
            Self::Missing(path) => Failure::usage(
                format!("{} does not exist", path.display()),
                "declare your services in it; docs/envforge-yml.md shows a short example",
            ),
            Self::Unreadable(path, error) => {
                Failure::local(format!("{} cannot be read: {error}", path.display()), "it must be a text file in UTF-8")
            }
            Self::Invalid { text, errors, path } => {
                output.note(&render(output, &text, &errors));
                let count = errors.errors().len() + errors.omitted();
                let mistakes = if count == 1 { "a mistake".to_owned() } else { format!("{count} mistakes") };
                // Programs get no notes, so they get the list here.
                let what = if output.json {
                    errors.to_string()
                } else {
                    format!("{} has {mistakes}; nothing was sent", path.display())
                };
                Failure::usage(what, "mend what is marked and run the command again")
            }
        }
    }
}

/// Each mistake with its line of the file and a caret below its column, as compilers show it.
pub(crate) fn render(output: &Output, text: &str, errors: &ManifestErrors) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = String::new();
    for error in errors.errors() {
        let position = error.position;
        let place = format!("{FILE}:{}:{}", position.line, position.column);
        let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
        shown.push_str(&format!("{}: {path}found {}; {}\n", output.bold(&place), error.found, error.expected));
        let Some(line) = lines.get(position.line - 1).filter(|line| may_be_shown(line, &error.path)) else { continue };
        let number = position.line.to_string();
        let (line, column) = window(line, position.column);
        let gutter = " ".repeat(number.len());
        shown.push_str(&format!("  {} {}\n", output.dim(&format!("{number} |")), line));
        shown.push_str(&format!(
            "  {} {}{}\n",
            output.dim(&format!("{gutter} |")),
            " ".repeat(column.saturating_sub(1)),
            output.red("^")
        ));
    }
    if errors.omitted() > 0 {
        shown.push_str(&format!("and {} more\n", errors.omitted()));
    }
    shown.trim_end().to_owned()
}

/// A line of `secrets` may hold a value that somebody wrote there by mistake; the error does not repeat it, nor do we.
fn may_be_shown(line: &str, path: &str) -> bool {
    !path.split(['.', '[']).any(|key| key == "secrets") && !line.contains("secrets")
}

const SHOWN_CHARS_MAX: usize = 100;

/// The part of a line that fits a terminal, with the column within it. One character stays one column: tabs become blanks,
/// what would move the cursor becomes a dot.
fn window(line: &str, column: usize) -> (String, usize) {
    let start = if column > SHOWN_CHARS_MAX { column - SHOWN_CHARS_MAX / 2 } else { 0 };
    let clean = |character: char| match character {
        '\t' => ' ',
        _ if character.is_control() => '.',
        _ => character,
    };
    (line.chars().skip(start).take(SHOWN_CHARS_MAX).map(clean).collect(), column - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        let Err(errors) = Manifest::parse(text) else { panic!("it is valid") };
        render(&Output::plain(), text, &errors)
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_caret() {
        let shown = errors("version: 1\nservices:\n  web:\n    comand: python3 app.py\n    route: web\n");
        let lines: Vec<_> = shown.lines().collect();
        let at =
            lines.iter().position(|line| line.starts_with("envforge.yml:4:5: ")).unwrap_or_else(|| panic!("{shown}"));
        assert_eq!(lines[at + 1], "  4 |     comand: python3 app.py");
        assert_eq!(lines[at + 2], "    |     ^");
    }

    #[test]
    fn lines_of_secrets_are_not_repeated() {
        let text =
            "version: 1\nservices:\n  web:\n    command: x\n    route: web\n    secrets:\n      - sk-live-1234 5678\n";
        let shown = errors(text);
        assert!(shown.contains("envforge.yml:7:"), "{shown}");
        assert!(!shown.contains("sk-live"), "{shown}");
    }

    #[test]
    fn a_long_line_is_shown_around_its_column_and_the_caret_stays_right() {
        let line = format!("{}X{}", "a".repeat(300), "b".repeat(300));
        let (shown, column) = window(&line, 301);
        assert_eq!(shown.chars().nth(column - 1), Some('X'));
        assert_eq!(window("\ta\u{1b}b", 2), (" a.b".to_owned(), 2));
    }

    #[test]
    fn a_missing_file_and_one_that_is_no_text_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let failure = ManifestFile::read(dir.path()).unwrap_err().into_failure(&Output::plain());
        assert!(failure.to_string().ends_with("envforge.yml does not exist"), "{failure}");
        std::fs::write(dir.path().join(FILE), [0xff, 0xfe]).unwrap();
        assert!(matches!(ManifestFile::read(dir.path()), Err(Unusable::Unreadable(..))));
    }
}
