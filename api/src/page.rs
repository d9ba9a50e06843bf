//! Parameters of requests and pages of lists, with errors that name the parameter.

use axum::extract::{FromRequestParts, Path as AxumPath, Query as AxumQuery};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_projections::sql;
use http::request::Parts;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::problem::Problem;

/// Parts of a path that are named in its template. What does not fit is nothing that exists.
pub(crate) struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = AxumPath::<T>::from_request_parts(parts, state).await;
        path.map(|AxumPath(path)| Self(path)).map_err(|_| Problem::not_found())
    }
}

/// Query parameters. An unknown one is refused: a misspelt filter must not answer everything.
pub(crate) struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        AxumQuery::<T>::try_from_uri(&parts.uri)
            .map(|AxumQuery(query)| Self(query))
            .map_err(|error| Problem::new("query_invalid", format!("{error}.")))
    }
}

/// A parameter that breaks a rule.
pub(crate) fn wrong_query(name: &str, reason: impl std::fmt::Display) -> Problem {
    Problem::new("query_invalid", format!("`{name}`: {reason}")).with("parameter", name)
}

/// Reads a parameter that has a type of its own.
pub(crate) fn parse_query<T: std::str::FromStr>(name: &str, text: Option<&str>) -> Result<Option<T>, Problem>
where
    T::Err: std::fmt::Display,
{
    text.map(|text| text.parse().map_err(|error| wrong_query(name, error))).transpose()
}

/// A parameter that is one of a few words.
pub(crate) fn one_of<T>(
    name: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Option<T>,
    allowed: &[&str],
) -> Result<Option<T>, Problem> {
    let unknown = |text: &str| wrong_query(name, format!("`{text}` is not one of {}", allowed.join(", ")));
    text.map(|text| parse(text).ok_or_else(|| unknown(text))).transpose()
}

/// One page of a list.
#[derive(Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `after` to get the following page; `null` on the last one.
    pub next: Option<String>,
}

impl<T> Page<T> {
    pub(crate) fn of<R, C: ToString>(page: sql::Page<R, C>, item: impl Fn(R) -> T) -> Self {
        Self {
            items: page.items.into_iter().map(item).collect(),
            next: page.next.map(|cursor| seal(&cursor.to_string())),
        }
    }
}

/// How many, and from where.
pub(crate) struct Slice {
    pub(crate) limit: sql::Limit,
    pub(crate) after: Option<String>,
}

impl Slice {
    pub(crate) fn new(limit: Option<u64>, after: Option<&str>) -> Result<Self, Problem> {
        let limit = match limit {
            None => sql::Limit::DEFAULT,
            Some(limit) => sql::Limit::new(limit).map_err(|error| wrong_query("limit", error))?,
        };
        Ok(Self { limit, after: after.map(open).transpose()? })
    }
}

/// Version of the cursors' form; another one is refused instead of misread.
const CURSOR_PREFIX: &str = "1:";

pub(crate) fn seal(cursor: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{CURSOR_PREFIX}{cursor}"))
}

pub(crate) fn open(text: &str) -> Result<String, Problem> {
    let cursor = (text.len() <= 400).then(|| URL_SAFE_NO_PAD.decode(text).ok()).flatten();
    cursor
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|cursor| cursor.strip_prefix(CURSOR_PREFIX).map(str::to_owned))
        .ok_or_else(cursor_invalid)
}

pub(crate) fn cursor_invalid() -> Problem {
    Problem::new("cursor_invalid", "`after` must be the `next` of an earlier answer of this list.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_cursor_is_read_back_and_nothing_else_is_a_cursor() {
        assert_eq!(open(&seal("17-0")).unwrap(), "17-0");
        for wrong in ["", "17-0", "!!!", &"A".repeat(401), &URL_SAFE_NO_PAD.encode("2:17-0")] {
            assert_eq!(open(wrong).unwrap_err().code(), "cursor_invalid", "{wrong}");
        }
    }
}
