//! The header fields of a request wherever they lie: in a parsed map, or as they came over the wire.
//!
//! What decides over requests asks through this, so that each rule exists once for both. Not here: the rules.

use http::HeaderMap;

/// Fields of one request. Names are asked for in lower case and found in any.
pub trait Fields {
    /// The values of one name, in order.
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]>;

    /// Everything, the values of one name in order.
    fn lines(&self) -> impl Iterator<Item = Line<'_>>;

    /// The first value of one name.
    fn first(&self, name: &'static str) -> Option<&[u8]> {
        self.values(name).next()
    }
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    /// Name, `: `, value and CRLF, where they lie together so.
    pub whole: Option<&'a [u8]>,
}

impl Fields for HeaderMap {
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]> {
        self.get_all(name).into_iter().map(http::HeaderValue::as_bytes)
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.iter().map(|(name, value)| Line { name: name.as_str().as_bytes(), value: value.as_bytes(), whole: None })
    }

    fn first(&self, name: &'static str) -> Option<&[u8]> {
        self.get(name).map(http::HeaderValue::as_bytes)
    }
}

/// Fields of a test, as somebody would write them.
#[cfg(test)]
impl Fields for Vec<(&str, &str)> {
    fn values<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.iter().map(|(name, value)| Line { name: name.as_bytes(), value: value.as_bytes(), whole: None })
    }
}
