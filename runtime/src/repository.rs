//! Repository addresses and branch names as they come from outside: what may be handed to git, and what is refused.
//!
//! Not here: git itself (`checkout`).

use crate::failure::CheckoutFailure;
use crate::git_login::Scope;

const ADDRESS_BYTES_MAX: usize = 2048;
const BRANCH_BYTES_MAX: usize = 250;

/// An address that git reads as an address, over https, ssh or a local path, without a password in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository(String);

impl Repository {
    pub(crate) fn parse(text: &str) -> Result<Self, CheckoutFailure> {
        let refuse = |reason| Err(CheckoutFailure::Repository { reason });
        if text.is_empty() || text.len() > ADDRESS_BYTES_MAX {
            return refuse("it must have 1 to 2048 bytes");
        }
        if text.chars().any(char::is_control) {
            return refuse("it holds control characters");
        }
        if text.starts_with('-') {
            return refuse("it begins with `-`, which git would read as an option");
        }
        if let Some(path) = text.strip_prefix("file://") {
            return if path.starts_with('/') {
                Ok(Self(text.to_owned()))
            } else {
                refuse("a file:// address needs an absolute path: file:///path")
            };
        }
        if text.starts_with('/') {
            return Ok(Self(text.to_owned()));
        }
        if text.contains(char::is_whitespace) {
            return refuse("it holds white space");
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let authority = rest.split('/').next().unwrap_or_default();
            return if authority.contains('@') {
                refuse("it holds a user name or password: credentials do not belong in an address")
            } else if authority.is_empty() || authority.starts_with('-') {
                refuse("it names no host")
            } else {
                Ok(Self(text.to_owned()))
            };
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            let authority = rest.split('/').next().unwrap_or_default();
            return Self::ssh(text, authority);
        }
        // Before the scp-like form, because `ext::sh -c ...` looks like one.
        if text.contains("::") {
            return refuse("it asks for a remote helper (`::`), which can run any program");
        }
        if text.contains("://") {
            return refuse(
                "its scheme is not allowed: use https://, ssh://, user@host:path, file:// or an absolute path",
            );
        }
        match text.split_once(':') {
            Some((authority, path)) if authority.contains('@') && !authority.contains('/') && !path.is_empty() => {
                if path.starts_with('-') {
                    refuse("its path begins with `-`")
                } else {
                    Self::ssh(text, authority)
                }
            }
            _ => refuse("it is none of https://, ssh://, user@host:path, file:// or an absolute path"),
        }
    }

    fn ssh(text: &str, authority: &str) -> Result<Self, CheckoutFailure> {
        let refuse = |reason| Err(CheckoutFailure::Repository { reason });
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            return refuse("it holds a password: credentials do not belong in an address");
        }
        // ssh would read a host or user that begins so as an option, e.g. -oProxyCommand=.
        if host.is_empty() || host.starts_with('-') || user.starts_with('-') {
            return refuse("it names no host");
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What git asks a credential for when it is asked for one for this address; `None` where that is not over https.
    pub(crate) fn scope(&self) -> Option<Scope> {
        let (host, path) = self.0.strip_prefix("https://")?.split_once('/')?;
        // As git's credential_from_url does.
        let (host, path) = (decoded(host)?, decoded(path.trim_end_matches('/'))?);
        let plain = !host.chars().chain(path.chars()).any(char::is_control);
        plain.then(|| Scope { url: self.0.clone(), host, path })
    }
}

/// `%20` as what it stands for; `None` where that is no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'%').then(|| after.get(..2)).flatten();
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|digits| !digits.starts_with('+')).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// A branch's short name that git accepts in a refspec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Branch(String);

impl Branch {
    /// The rules of git-check-ref-format.
    pub(crate) fn parse(text: &str) -> Result<Self, CheckoutFailure> {
        let refuse = |reason| Err(CheckoutFailure::Branch { branch: text.chars().take(80).collect(), reason });
        if text.is_empty() || text.len() > BRANCH_BYTES_MAX {
            return refuse("it must have 1 to 250 bytes");
        }
        if text.starts_with('-') {
            return refuse("it begins with `-`");
        }
        if text.chars().any(|character| character.is_control() || " ~^:?*[\\".contains(character)) {
            return refuse("it holds a space, a control character or one of ~ ^ : ? * [ \\");
        }
        if text == "@" || text.contains("..") || text.contains("@{") || text.ends_with('.') {
            return refuse("it is `@`, holds `..` or `@{`, or ends with `.`");
        }
        if text.split('/').any(|part| part.is_empty() || part.starts_with('.') || part.ends_with(".lock")) {
            return refuse("a part between slashes is empty, begins with `.` or ends with `.lock`");
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// At most five of the names, the most alike first.
    pub(crate) fn nearest<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut scored: Vec<_> = names.map(|name| (distance(&self.0, name), name)).collect();
        scored.sort_unstable();
        scored.into_iter().take(5).map(|(_, name)| name.chars().take(120).collect()).collect()
    }
}

/// Levenshtein distance in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(BRANCH_BYTES_MAX).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_four_kinds_are_accepted() {
        for text in [
            "https://github.com/acme/shop.git",
            "https://git.acme.dev:8443/shop",
            "ssh://git@github.com/acme/shop.git",
            "ssh://git@github.com:22/acme/shop.git",
            "git@github.com:acme/shop.git",
            "file:///srv/git/shop.git",
            "/srv/git/my shop",
        ] {
            assert_eq!(Repository::parse(text).map(|repository| repository.0), Ok(text.to_owned()));
        }
    }

    #[test]
    fn addresses_that_run_programs_or_carry_passwords_are_refused() {
        for text in [
            "",
            "-",
            "--upload-pack=touch /tmp/x",
            "-u/tmp/x",
            "ext::sh -c touch% /tmp/x",
            "ext::sh",
            "git@host::path",
            "fd::17",
            "http://github.com/acme/shop",
            "git://github.com/acme/shop",
            "ftp://host/x",
            "https://token@github.com/acme/shop",
            "https://user:password@github.com/acme/shop",
            "https:///acme/shop",
            "ssh://-oProxyCommand=x/shop",
            "ssh://git@-oProxyCommand=x/shop",
            "ssh://git:password@host/shop",
            "-oProxyCommand=x@host:path",
            "git@host:-x",
            "file://host/path",
            "shop",
            "./shop",
            "../shop",
            "host:path",
            "https://host/a b",
            "/srv/git\n/x",
        ] {
            let refused = Repository::parse(text);
            assert!(matches!(refused, Err(CheckoutFailure::Repository { .. })), "{text}: {refused:?}");
            let said = refused.map(|_| ()).map_err(|failure| failure.to_string());
            assert!(said.is_err_and(|said| !said.contains("password@") && !said.contains("token@")), "{text}");
        }
    }

    #[test]
    fn branch_names_follow_git() {
        for text in ["main", "feature/signed-links", "v1.2", "ünïcode", "a@b"] {
            assert!(Branch::parse(text).is_ok(), "{text}");
        }
        for text in [
            "", "-f", "--all", "a..b", "a b", "a:b", "+a~1", "a^", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b", ".a",
            "a/.b", "a.lock", "a.lock/b", "a.", "@", "a@{1}", "a\u{7f}", "a\n",
        ] {
            assert!(Branch::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn near_names_come_first() {
        let branch = Branch("singed-links".to_owned());
        let names = ["main", "signed-links", "develop", "a", "b", "c", "signed-link"];
        let nearest = branch.nearest(names.into_iter());
        assert_eq!(nearest.len(), 5);
        assert_eq!(nearest[0], "signed-links");
        assert_eq!(nearest[1], "signed-link");
    }
}
