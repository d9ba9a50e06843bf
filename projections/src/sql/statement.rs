//! A statement as it is put together: text with numbered placeholders, and the values for them.
//!
//! INVARIANT: values get into the text only as placeholders; what is pushed as text stands in our own code.

use std::fmt::Write;

use super::table::storable;

/// A value for a placeholder.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Int(Option<i64>),
    Text(Option<String>),
}

impl From<i64> for Argument {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Argument {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Argument {
    fn from(value: &str) -> Self {
        Self::Text(Some(storable(value).into_owned()))
    }
}

impl From<String> for Argument {
    fn from(value: String) -> Self {
        value.as_str().into()
    }
}

impl From<Option<String>> for Argument {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

/// Built up piece by piece; placeholders are numbered by themselves.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(crate) text: String,
    pub(crate) arguments: Vec<Argument>,
}

impl Statement {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), arguments: Vec::new() }
    }

    #[must_use]
    pub(crate) fn push(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    #[must_use]
    pub(crate) fn bind(mut self, value: impl Into<Argument>) -> Self {
        self.arguments.push(value.into());
        write!(self.text, "${}", self.arguments.len()).expect("writing to a String does not fail");
        self
    }

    /// `text` followed by the value, where there is one.
    #[must_use]
    pub(crate) fn bind_some(self, text: &str, value: Option<impl Into<Argument>>) -> Self {
        match value {
            Some(value) => self.push(text).bind(value),
            None => self,
        }
    }

    /// `column IN ($2, $3)`; a list of none matches nothing.
    #[must_use]
    pub(crate) fn bind_in(self, column: &str, values: impl IntoIterator<Item = impl Into<Argument>>) -> Self {
        let mut values = values.into_iter();
        let Some(first) = values.next() else { return self.push("1 = 0") };
        let opened = self.push(column).push(" IN (").bind(first);
        values.fold(opened, |statement, value| statement.push(", ").bind(value)).push(")")
    }
}
