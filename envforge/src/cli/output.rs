//! What the command line writes: tables and lines for people, JSON for programs, colours only where they are welcome.
//!
//! Not here: what the columns of a noun are; each noun has its own file. Results go to standard output; progress, notes and errors
//! to standard error, so that a pipe gets results alone.

use std::io::{IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use super::failure::Failure;
use super::instant::Instants;

/// Where and how to write.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Results as JSON.
    pub json: bool,
    color: bool,
    /// A person watches standard error: spinners are welcome.
    pub live: bool,
    /// A person reads standard output: JSON is then spread over several lines.
    pretty: bool,
    pub instants: Instants,
}

/// What of the environment decides about colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColorWish {
    /// `--no-color`, or `NO_COLOR` set and not empty (no-color.org).
    pub refused: bool,
    pub stdout_is_terminal: bool,
    pub stderr_is_terminal: bool,
}

impl Output {
    pub(crate) fn new(json: bool, wish: ColorWish, instants: Instants) -> Self {
        let color = !wish.refused && !json && wish.stdout_is_terminal && wish.stderr_is_terminal;
        Self { json, color, live: !json && wish.stderr_is_terminal, pretty: wish.stdout_is_terminal, instants }
    }

    /// Of this process.
    pub(crate) fn of_terminal(json: bool, color_refused: bool, instants: Instants) -> Self {
        let wish = ColorWish {
            refused: color_refused,
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
        };
        Self::new(json, wish, instants)
    }

    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { json: false, color: false, live: false, pretty: false, instants: Instants::for_tests() }
    }

    /// One line of a result.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(())
    }

    /// A result as JSON, over several lines for a terminal and on one line for a program.
    pub(crate) fn value(&self, value: &Value) -> Result<(), Failure> {
        let text = if self.pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        self.line(&text.map_err(std::io::Error::from)?)
    }

    /// One of several JSON objects of a command that reports as it goes: a line each, also on a terminal.
    pub(crate) fn event(&self, event: &Value) -> Result<(), Failure> {
        self.line(&serde_json::to_string(event).map_err(std::io::Error::from)?)
    }

    /// As `result`, for the last of several objects.
    pub(crate) fn last_event(&self, event: &Value, people: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json { self.event(event) } else { self.result(event, people) }
    }

    /// `value` for programs, what `people` renders for people.
    pub(crate) fn result(&self, value: &Value, people: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json { self.value(value) } else { self.line(people().trim_end_matches('\n')) }
    }

    /// A remark that is no result. Programs do not get it.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            // Standard error may be closed; a remark is not worth failing for.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
    }

    /// Something that works but is probably not what was meant.
    pub(crate) fn warn(&self, text: &str) {
        self.note(&format!("{} {}", self.yellow("warning:"), printable(text)));
    }

    /// An error, in the form that was asked for.
    pub(crate) fn failure(&self, failure: &Failure) {
        let text = if self.json { failure.to_json().to_string() } else { failure.render(self) };
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Rows below a header; an empty list is a sentence, not an empty table.
    pub(crate) fn table<const N: usize>(&self, header: [&str; N], rows: Vec<[String; N]>, empty: &str) -> String {
        if rows.is_empty() {
            return empty.to_owned();
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        // Never wrapped within a cell: ids and addresses are copied from here, and a terminal wraps whole lines itself.
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.map(str::to_owned));
        for row in rows {
            table.add_row(row.map(|cell| printable(&cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        if let Some(first) = lines.first_mut() {
            *first = self.dim(first);
        }
        lines.join("\n")
    }

    /// `name  value` lines of one thing, names aligned. Lines without a value are left out.
    pub(crate) fn card(&self, lines: &[(&str, String)]) -> String {
        let lines: Vec<_> = lines.iter().filter(|(_, value)| !value.is_empty()).collect();
        let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line =
            |(name, value): &&(&str, String)| format!("{}  {}", self.dim(&format!("{name:width$}")), printable(value));
        lines.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn red(&self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub(crate) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(crate) fn cyan(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// `text` fit for a terminal: labels, names and titles come from other people, and an escape sequence in one of them
/// would move the cursor or rewrite what stands above. Line ends stay where a text has several lines.
pub(crate) fn printable(text: &str) -> String {
    let hidden =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut shown = String::with_capacity(text.len());
    for character in text.trim_end_matches(['\r', '\n']).chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            _ if character.is_control() || hidden(character) => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

/// What a JSON value shows in a cell: nothing for null, texts without quotes.
pub(crate) fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(refused: bool, stdout_is_terminal: bool) -> ColorWish {
        ColorWish { refused, stdout_is_terminal, stderr_is_terminal: true }
    }

    #[test]
    fn colors_need_a_terminal_and_nobody_who_refuses_them() {
        let instants = Instants::for_tests;
        assert_eq!(Output::new(false, wish(false, true), instants()).red("x"), "\u{1b}[31;1mx\u{1b}[0m");
        assert_eq!(Output::new(false, wish(true, true), instants()).red("x"), "x");
        assert_eq!(Output::new(false, wish(false, false), instants()).red("x"), "x");
        assert_eq!(Output::new(true, wish(false, true), instants()).red("x"), "x");
    }

    #[test]
    fn a_table_aligns_its_columns_and_an_empty_one_is_a_sentence() {
        let output = Output::plain();
        let rows = vec![["web".into(), "ready".into()], ["signed-links".into(), "asleep".into()]];
        assert_eq!(
            output.table(["WORKSPACE", "STATE"], rows, "no workspaces"),
            "WORKSPACE     STATE\nweb           ready\nsigned-links  asleep"
        );
        assert_eq!(output.table(["A"], vec![], "no workspaces"), "no workspaces");
    }

    #[test]
    fn a_card_leaves_out_what_is_not_known() {
        let card =
            Output::plain().card(&[("link", "lnk_1".into()), ("label", String::new()), ("expires", "soon".into())]);
        assert_eq!(card, "link     lnk_1\nexpires  soon");
    }

    #[test]
    fn escape_sequences_and_hidden_characters_of_others_are_shown_not_obeyed() {
        assert_eq!(printable("a\u{1b}[31mb\u{202e}c\r\n"), "a\\u{1b}[31mb\\u{202e}c");
    }
}
