//! Why a command of the command line failed, what that is to scripts (exit code) and what to try next.
//!
//! Owns the exit codes and how an error is shown. Not here: what the server's problems mean (`problem`).

use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::{Output, printable};
use super::problem::Problem;

/// What the process ends with. Scripts rely on the numbers: they never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    Refused,
    Usage,
    NotPermitted,
    NotFound,
    Conflict,
    Unreachable,
    /// 128 + SIGINT, as shells have it.
    Interrupted,
    /// Of the command that a shell or a job ran, whatever it is.
    Passed(u8),
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Refused => 1,
            Self::Usage => 2,
            Self::NotPermitted => 3,
            Self::NotFound => 4,
            Self::Conflict => 5,
            Self::Unreachable => 6,
            Self::Interrupted => 130,
            Self::Passed(code) => code,
        }
    }
}

/// `envforge help exit-codes`.
pub(crate) const EXIT_CODES_HELP: &str = "\
Every command of envforge ends with one of these codes; they are stable, so scripts may rely on them. `shell` and `run` end
with the exit status of what they ran instead, or with 128 and the number of the signal that ended it.

    0    done
    1    the server refused the request, a wake or a check of `envforge doctor` failed, a local file could not be read
         or written, or `dev`, `serve` or a part of them could not start or go on; the message says which
    2    the command line or envforge.yml is wrong, nothing was sent
    3    not signed in, or not permitted
    4    there is no such organization, project, workspace, link or member
    5    conflict: somebody else changed it, or the name is taken
    6    the API cannot be reached, or what a role works with (NATS, PostgreSQL), or one of them or a wait took too
         long; repeating the command is safe
    130  interrupted by Ctrl-C; what was sent already is carried out by the server

With --json an error is one line of JSON on standard error:

    {\"error\": {\"code\": \"...\", \"title\": \"...\", \"detail\": \"...\", \"hint\": \"...\", \"request_id\": \"...\",
               \"status\": 409, \"exit_code\": 5}}";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A sentence on what is wrong, and one on what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Explained {
    pub what: String,
    pub hint: Option<String>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The command line or a file that it names is wrong; nothing was sent.
    #[error("{}", .0.what)]
    Usage(Explained),
    /// Something of this machine failed: a file, Git, the terminal.
    #[error("{}", .0.what)]
    Local(Explained),
    /// The server answered with a problem document, or with something that is none.
    #[error("{}", .0.title)]
    Refused(Box<Problem>),
    /// What was asked for came to a bad end on the server: a wake that failed.
    #[error("{}", .0.what)]
    Failed(Explained),
    #[error("{}", .0.what)]
    SignedOut(Explained),
    #[error("{}", .0.what)]
    NotFound(Explained),
    #[error("{}", .0.what)]
    Conflict(Explained),
    #[error("{}", .0.what)]
    Unreachable(Explained),
    #[error("{}", .0.what)]
    TimedOut(Explained),
    #[error("interrupted")]
    Interrupted,
    /// Whoever read our output has enough, as `head` does: no error.
    #[error("the output was closed")]
    OutputClosed,
}

macro_rules! explained {
    ($($name:ident => $variant:ident),*) => {
        impl Failure {
            $(pub(crate) fn $name(what: impl Into<String>, hint: impl Into<String>) -> Self {
                let hint = hint.into();
                Self::$variant(Explained { what: what.into(), hint: (!hint.is_empty()).then_some(hint) })
            })*
        }
    };
}

explained!(
    usage => Usage, local => Local, failed => Failed, signed_out => SignedOut, not_found => NotFound,
    conflict => Conflict, unreachable => Unreachable, timed_out => TimedOut
);

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::local(error.to_string(), "")
        }
    }
}

impl Failure {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::OutputClosed => Exit::Ok,
            Self::Local(_) | Self::Failed(_) => Exit::Refused,
            Self::Refused(problem) => problem.exit(),
            Self::Usage(_) => Exit::Usage,
            Self::SignedOut(_) => Exit::NotPermitted,
            Self::NotFound(_) => Exit::NotFound,
            Self::Conflict(_) => Exit::Conflict,
            Self::Unreachable(_) | Self::TimedOut(_) => Exit::Unreachable,
            Self::Interrupted => Exit::Interrupted,
        }
    }

    /// Machine-readable kind: the server's code, or one of ours.
    fn code(&self) -> &str {
        match self {
            Self::Refused(problem) => problem.code(),
            Self::Usage(_) => "usage",
            Self::Local(_) => "local",
            Self::Failed(_) => "failed",
            Self::SignedOut(_) => "signed_out",
            Self::NotFound(_) => "not_found",
            Self::Conflict(_) => "conflict",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut(_) => "timed_out",
            Self::Interrupted => "interrupted",
            Self::OutputClosed => "output_closed",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(problem) => problem.hint(),
            Self::Usage(explained)
            | Self::Local(explained)
            | Self::Failed(explained)
            | Self::SignedOut(explained)
            | Self::NotFound(explained)
            | Self::Conflict(explained)
            | Self::Unreachable(explained)
            | Self::TimedOut(explained) => explained.hint.clone(),
            Self::Interrupted => {
                Some("what was sent already is carried out by the server; run the command again to go on".into())
            }
            Self::OutputClosed => None,
        }
    }

    fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            Self::Usage(_)
            | Self::Local(_)
            | Self::Failed(_)
            | Self::SignedOut(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Unreachable(_)
            | Self::TimedOut(_)
            | Self::Interrupted
            | Self::OutputClosed => None,
        }
    }

    /// The one line of `--json`, and what tests hold on to.
    pub(crate) fn to_json(&self) -> Value {
        let problem = self.problem();
        json!({"error": {
            "code": self.code(),
            "title": self.to_string(),
            "detail": problem.and_then(|problem| problem.detail.as_deref()),
            "hint": self.hint(),
            "request_id": problem.and_then(|problem| problem.request_id.as_deref()),
            "status": problem.map(|problem| problem.status),
            "exit_code": self.exit().code(),
        }})
    }

    /// The lines for people: title and detail, what is wrong with which field, a hint, the request.
    pub(crate) fn render(&self, output: &Output) -> String {
        let mut text = format!("{} {}", output.red("error:"), printable(&self.to_string()));
        if let Some(problem) = self.problem() {
            // `detail` repeats what `errors` lists, so that clients without eyes for lists say it too.
            let told = |detail: &&str| *detail != problem.title && problem.code() != "manifest_invalid";
            if let Some(detail) = problem.detail.as_deref().filter(told) {
                text.push_str(&format!("\n  {}", printable(detail)));
            }
            for line in problem.field_lines() {
                text.push_str(&format!("\n  - {}", printable(&line)));
            }
        }
        if let Some(hint) = self.hint() {
            text.push_str(&format!("\n{} {}", output.cyan("hint:"), printable(&hint)));
        }
        if let Some(request) = self.problem().and_then(|problem| problem.request_id.as_deref()) {
            text.push_str(&format!("\n{}", output.dim(&format!("request: {}", printable(request)))));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures() -> Vec<(Failure, u8)> {
        let of = |status| Failure::Refused(Box::new(Problem::bare(status)));
        vec![
            (Failure::usage("a", ""), 2),
            (Failure::local("a", ""), 1),
            (Failure::failed("a", ""), 1),
            (Failure::signed_out("a", ""), 3),
            (Failure::not_found("a", ""), 4),
            (Failure::conflict("a", ""), 5),
            (Failure::unreachable("a", ""), 6),
            (Failure::timed_out("a", ""), 6),
            (Failure::Interrupted, 130),
            (Failure::OutputClosed, 0),
            (of(400), 1),
            (of(401), 3),
            (of(403), 3),
            (of(404), 4),
            (of(408), 6),
            (of(409), 5),
            (of(412), 5),
            (of(422), 1),
            (of(429), 1),
            (of(500), 1),
            (of(502), 6),
            (of(503), 6),
            (of(504), 6),
        ]
    }

    #[test]
    fn every_failure_has_the_exit_code_that_the_help_promises() {
        for (failure, code) in failures() {
            assert_eq!(failure.exit().code(), code, "{failure:?}");
            assert_eq!(failure.to_json()["error"]["exit_code"], code);
            let documented = EXIT_CODES_HELP.lines().any(|line| line.trim().starts_with(&format!("{code} ")));
            assert!(documented, "{code} is not in `envforge help exit-codes`");
        }
    }

    #[test]
    fn a_problem_shows_title_detail_fields_hint_and_request_in_this_order() {
        let problem = Problem::parse(
            422,
            None,
            br#"{"type":"about:blank","title":"The link's lifetime is too long","status":422,"code":"link_lifetime_out_of_range",
                "detail":"at most 604800 s","errors":[{"pointer":"/lifetime_seconds","detail":"must be at most 604800"}],
                "instance":"req-7"}"#,
        );
        let text = Failure::Refused(Box::new(problem)).render(&Output::plain());
        assert_eq!(
            text,
            "error: The link's lifetime is too long\n  at most 604800 s\n  - /lifetime_seconds: must be at most 604800\n\
             hint: `envforge org policy show` shows what the organization allows\nrequest: req-7"
        );
    }

    #[test]
    fn what_a_server_says_cannot_move_the_cursor() {
        let mut problem = Problem::bare(400);
        problem.title = "bad\u{1b}[2Jthing\r\n".into();
        let text = Failure::Refused(Box::new(problem)).render(&Output::plain());
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text:?}");
    }
}
