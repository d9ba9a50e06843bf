//! Why a runtime was woken, as a text in a column: JSON with ids as displayed.
//!
//! Read models own this form and may change it with a rebuild; the log has its own (eventlog's schemas).

use envforge_domain::runtime::WakeCause;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Stored {
    Link { link: String, session: String },
    Person { by: String },
    Job { name: String, by: String },
    Agent { name: String, by: String },
}

/// `link`, `person`, `job` or `agent`.
pub(crate) const fn kind(cause: &WakeCause) -> &'static str {
    match cause {
        WakeCause::Link { .. } => "link",
        WakeCause::Person(_) => "person",
        WakeCause::Job { .. } => "job",
        WakeCause::Agent { .. } => "agent",
    }
}

pub(crate) fn to_text(cause: &WakeCause) -> String {
    let stored = match cause {
        WakeCause::Link { link, session } => Stored::Link { link: link.to_string(), session: session.to_string() },
        WakeCause::Person(by) => Stored::Person { by: by.to_string() },
        WakeCause::Job { name, by } => Stored::Job { name: name.clone(), by: by.to_string() },
        WakeCause::Agent { name, by } => Stored::Agent { name: name.clone(), by: by.to_string() },
    };
    serde_json::to_string(&stored).expect("texts always make JSON")
}

pub(crate) fn parse(text: &str) -> Result<WakeCause, String> {
    let stored: Stored = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let parsed = match stored {
        Stored::Link { link, session } => {
            link.parse().and_then(|link| Ok(WakeCause::Link { link, session: session.parse()? }))
        }
        Stored::Person { by } => by.parse().map(WakeCause::Person),
        Stored::Job { name, by } => by.parse().map(|by| WakeCause::Job { name, by }),
        Stored::Agent { name, by } => by.parse().map(|by| WakeCause::Agent { name, by }),
    };
    parsed.map_err(|error| error.to_string())
}
