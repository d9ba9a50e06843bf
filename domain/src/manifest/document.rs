//! A YAML text as a tree with positions.
//!
//! Owns what of YAML is allowed at all: one document of mappings, lists and scalars, without anchors, aliases, tags,
//! merge keys and duplicate keys, of bounded size and depth. Not here: what the keys mean (`reader`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::error::{ErrorKind, ManifestError, Position, join, quoted};
use crate::limits;

/// Deepest nesting of mappings and lists. The format itself needs six.
const DEPTH_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) at: Position,
    pub(super) content: Content<'a>,
}

#[derive(Debug)]
pub(super) enum Content<'a> {
    Scalar {
        text: Cow<'a, str>,
        /// Neither quoted nor a block scalar: the reader may take it for something else than text.
        plain: bool,
    },
    List(Vec<Node<'a>>),
    /// Keys are unique.
    Map(Vec<(Key<'a>, Node<'a>)>),
    /// Reported already; says nothing more.
    Refused,
}

#[derive(Debug)]
pub(super) struct Key<'a> {
    pub(super) at: Position,
    pub(super) text: Cow<'a, str>,
    pub(super) plain: bool,
}

/// Reads `text`. `None` where the text is not YAML or holds no document; mistakes are added to `errors`.
pub(super) fn read<'a>(text: &'a str, errors: &mut Vec<ManifestError>) -> Option<Node<'a>> {
    let refuse = |position, kind, found: String, expected: &str| ManifestError {
        position,
        path: String::new(),
        kind,
        found,
        expected: expected.to_owned(),
    };
    let start = Position { line: 1, column: 1 };
    if text.len() > limits::MANIFEST_BYTES_MAX {
        let found = format!("a file of {} bytes", text.len());
        let expected = format!("at most {} are allowed", limits::MANIFEST_BYTES_MAX);
        errors.push(refuse(start, ErrorKind::OutOfLimits, found, &expected));
        return None;
    }
    // Editors show the mark of UTF-8 as nothing, so columns count without it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Some((position, character)) = unprintable(text) {
        let found = format!("the character U+{:04X}", u32::from(character));
        let expected = match character {
            '\0' => "YAML allows only printable characters; remove it".to_owned(),
            _ => format!(
                "YAML allows only printable characters; in double quotes write {}",
                quoted(&if u32::from(character) < 0x100 {
                    format!("\\x{:02X}", u32::from(character))
                } else {
                    format!("\\u{:04X}", u32::from(character))
                })
            ),
        };
        errors.push(refuse(position, ErrorKind::Syntax, found, &expected));
        return None;
    }
    let mut builder = Builder { parser: Parser::new_from_str(text), errors };
    match builder.document() {
        Ok(root) => root,
        Err(Stop::Reported) => None,
        Err(Stop::Scan(error)) => {
            errors.push(syntax(&error));
            None
        }
    }
}

/// The first character outside of YAML 1.2.2 `c-printable`. Found before parsing because the scanner takes U+0000 for the end.
fn unprintable(text: &str) -> Option<(Position, char)> {
    let allowed = |character: char| {
        matches!(character,
            '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
            && character != '\u{feff}'
    };
    let (byte, character) = text.char_indices().find(|&(_, character)| !allowed(character))?;
    Some((end(&text[..byte]), character))
}

/// The place right after `text`.
pub(super) fn end(text: &str) -> Position {
    let bytes = text.as_bytes();
    let breaks =
        (0..bytes.len()).filter(|&at| bytes[at] == b'\n' || (bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n')));
    let (count, line_start) = breaks.fold((0, 0), |(count, _), at| (count + 1, at + 1));
    Position { line: count + 1, column: text[line_start..].chars().count() + 1 }
}

enum Stop {
    Scan(ScanError),
    Reported,
}

impl From<ScanError> for Stop {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

struct Builder<'a, 'e> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    errors: &'e mut Vec<ManifestError>,
}

impl<'a> Builder<'a, '_> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        match self.parser.next_event() {
            Some(event) => Ok(event?),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn refuse(&mut self, position: Position, path: &str, kind: ErrorKind, found: impl Into<String>, expected: &str) {
        self.errors.push(ManifestError {
            position,
            path: path.to_owned(),
            kind,
            found: found.into(),
            expected: expected.to_owned(),
        });
    }

    fn document(&mut self) -> Result<Option<Node<'a>>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::Nothing | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    let found = "a second YAML document";
                    self.refuse(
                        place(span.start),
                        "",
                        ErrorKind::UnsupportedYaml,
                        found,
                        "the file holds one; remove the `---`",
                    );
                    return Err(Stop::Reported);
                }
                Event::DocumentStart(_) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, &mut String::new(), 0, None)?);
                }
                // The parser gives content only between the start and the end of a document.
                other => {
                    drop(other);
                    self.refuse(place(span.start), "", ErrorKind::Syntax, "content outside of a document", "remove it");
                    return Err(Stop::Reported);
                }
            }
        }
        Ok(root)
    }

    /// `key_at` is the place of the key that the node belongs to: where an empty value is reported.
    fn node(
        &mut self,
        event: Event<'a>,
        span: Span,
        path: &mut String,
        depth: usize,
        key_at: Option<Position>,
    ) -> Result<Node<'a>, Stop> {
        let at = place(span.start);
        if depth > DEPTH_MAX {
            let found = format!("more than {DEPTH_MAX} levels of nesting");
            self.refuse(at, path, ErrorKind::OutOfLimits, found, "nothing in this file needs more than six");
            return Err(Stop::Reported);
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag.as_deref()),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag.as_deref()),
            _ => (0, None),
        };
        if anchor > 0 {
            let expected = "anchors are not supported; remove it and write the value where it is needed";
            self.refuse(at, path, ErrorKind::UnsupportedYaml, "an anchor (`&`)", expected);
        }
        if let Some(tag) = tag {
            let handle = if tag.is_yaml_core_schema() { "!!" } else { &tag.handle };
            let found = format!("the tag {}", quoted(&format!("{handle}{}", tag.suffix)));
            self.refuse(at, path, ErrorKind::UnsupportedYaml, found, "tags are not supported; for a text use quotes");
        }
        let content = match event {
            Event::Scalar(text, style, ..) => {
                let plain = style == ScalarStyle::Plain;
                if plain && text.is_empty() {
                    return Ok(Node { at: key_at.unwrap_or(at), content: Content::Scalar { text, plain } });
                }
                Content::Scalar { text, plain }
            }
            Event::SequenceStart(..) => Content::List(self.list(path, depth)?),
            Event::MappingStart(..) => Content::Map(self.map(path, depth)?),
            Event::Alias(_) => {
                self.refuse(at, path, ErrorKind::UnsupportedYaml, "an alias (`*`)", ALIAS_EXPECTED);
                Content::Refused
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => {
                self.refuse(at, path, ErrorKind::Syntax, "no value", "a value is needed here");
                return Err(Stop::Reported);
            }
        };
        Ok(Node { at, content })
    }

    fn list(&mut self, path: &mut String, depth: usize) -> Result<Vec<Node<'a>>, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            let length = path.len();
            path.push_str(&format!("[{}]", items.len()));
            let item = self.node(event, span, path, depth + 1, None)?;
            path.truncate(length);
            items.push(item);
        }
    }

    fn map(&mut self, path: &mut String, depth: usize) -> Result<Vec<(Key<'a>, Node<'a>)>, Stop> {
        let mut entries: Vec<(Key<'a>, Node<'a>)> = Vec::new();
        let mut seen: BTreeMap<Cow<'a, str>, Position> = BTreeMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = self.node(event, span, path, depth + 1, None)?;
            let at = key.at;
            let length = path.len();
            let key = match key.content {
                Content::Scalar { text, plain } => {
                    *path = join(path, &text);
                    Some(Key { at, text, plain })
                }
                Content::Refused => None,
                Content::List(_) | Content::Map(_) => {
                    let expected = "a key is a single word; quote a text that begins with `[` or `{`";
                    self.refuse(at, path, ErrorKind::WrongType, "a list or mapping as a key", expected);
                    None
                }
            };
            let (event, span) = self.next()?;
            let value = self.node(event, span, path, depth + 1, Some(at))?;
            let Some(key) = key else {
                path.truncate(length);
                continue;
            };
            if key.plain && key.text == "<<" {
                let expected = "merge keys are not supported; write the keys where they are needed";
                self.refuse(at, path, ErrorKind::UnsupportedYaml, "a merge key (`<<`)", expected);
            } else if let Some(first) = seen.get(&key.text) {
                let expected = format!("it stands on line {} already; keep one of the two", first.line);
                let found = format!("the key {} a second time", quoted(&key.text));
                self.refuse(at, path, ErrorKind::DuplicateKey, found, &expected);
            } else {
                seen.insert(key.text.clone(), at);
                entries.push((key, value));
            }
            path.truncate(length);
        }
    }
}

const ALIAS_EXPECTED: &str = "aliases are not supported; write the value here, or quote a text that begins with `*`";

fn place(mark: Marker) -> Position {
    Position { line: mark.line(), column: mark.col() + 1 }
}

/// The scanner's complaint, with what usually is behind it.
fn syntax(error: &ScanError) -> ManifestError {
    let info = error.info();
    let mut kind = ErrorKind::Syntax;
    let mut found = format!("invalid YAML ({info})");
    let expected = if info.contains("unknown anchor") {
        kind = ErrorKind::UnsupportedYaml;
        "an alias (`*`)".clone_into(&mut found);
        ALIAS_EXPECTED
    } else if info.contains("handle wasn't declared") || info.contains(" tag") || info.contains("TAG") {
        "tags are not supported; quote a text that begins with `!`"
    } else if info.contains("tab") {
        "indent with spaces, YAML allows no tabs there"
    } else if info.contains("mapping values are not allowed") {
        "quote a text that holds `: `, or correct the indentation"
    } else if info.contains("unexpected character") {
        "quote a text that begins with `@`, a backtick or `%`"
    } else if info.contains("quoted scalar") && (info.contains("end of stream") || info.contains("document indicator"))
    {
        "close the quote"
    } else if info.contains("escape") || info.contains("hexadecimal") {
        "in double quotes write `\\\\` for a backslash, or use single quotes"
    } else if info.contains("flow mapping") {
        "separate entries with `,` and close the mapping with `}`"
    } else if info.contains("flow sequence") {
        "separate items with `,` and close the list with `]`"
    } else if info.contains("recursion limit") {
        kind = ErrorKind::OutOfLimits;
        "nothing in this file needs more than six levels of nesting"
    } else if info.contains("did not find expected key") || info.contains("simple key") {
        "write `key: value`, and indent keys of one mapping by the same number of spaces"
    } else {
        "check indentation and quotes at this place"
    };
    ManifestError { position: place(*error.marker()), path: String::new(), kind, found, expected: expected.to_owned() }
}
