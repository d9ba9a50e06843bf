//! `envforge audit`: rows of who did what, replay of the events, and what happens right now.
//!
//! Rows come from a read model; replay and tail read the log itself, as CloudEvents. A follower that loses its connection goes on where it
//! was, without losing or repeating an event.

use std::collections::HashMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::read_wire;
use super::output::{Output, cell, printable};
use super::workspace::more;

#[derive(Args, Debug)]
pub(crate) struct AuditArguments {
    #[command(subcommand)]
    verb: AuditVerb,
}

#[derive(Subcommand, Debug)]
enum AuditVerb {
    /// Who did what, on which surface, when, and with which outcome
    #[command(after_help = "\
Examples:
  envforge audit log --since 2h
  envforge audit log --outcome denied --type dev_link.
  envforge audit log --link lnk_0197… --oldest-first --json")]
    Log(LogArguments),
    /// The events themselves as JSON Lines (CloudEvents 1.0), from the log's first position or another one
    #[command(after_help = "\
Examples:
  envforge audit replay > events.jsonl
  envforge audit replay --from 1200 --to 1300 --kind dev_link,runtime
  envforge audit replay --from 1 --follow")]
    Replay {
        /// First position
        #[arg(long, value_name = "POSITION", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        from: u64,
        /// Last position [default: the log's end]
        #[arg(long, value_name = "POSITION")]
        to: Option<u64>,
        #[command(flatten)]
        which: Which,
        /// Stay and print what happens from then on
        #[arg(long)]
        follow: bool,
    },
    /// What happens right now, a line for each event
    Tail {
        #[command(flatten)]
        which: Which,
        /// Also the signs of life of runtimes that are awake
        #[arg(long)]
        all: bool,
    },
}

#[derive(Args, Debug)]
struct LogArguments {
    /// Not before: 2h, 7d, 2026-11-24, 2026-11-24T07:54:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Id of a user or link, or the name of a part of EnvForge
    #[arg(long)]
    actor: Option<String>,
    /// Beginning of an event type or action: `dev_link.`
    #[arg(long = "type", value_name = "PREFIX")]
    event_type: Option<String>,
    /// Id of a project
    #[arg(long)]
    project: Option<String>,
    /// Workspace, by slug or id
    #[arg(long)]
    workspace: Option<String>,
    /// Id of a link
    #[arg(long)]
    link: Option<String>,
    /// Everything that goes back to one request
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// What was done, or what was refused
    #[arg(long, value_parser = ["done", "denied"])]
    outcome: Option<String>,
    /// The oldest first
    #[arg(long)]
    oldest_first: bool,
    /// Most rows to show
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
}

/// Which events.
#[derive(Args, Debug)]
struct Which {
    /// Kinds of streams, separated by commas: dev_link,runtime
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Event types, separated by commas: dev_link.issued, runtime.
    #[arg(long = "type", value_name = "TYPES")]
    event_type: Option<String>,
}

pub(super) async fn run(context: &Context, arguments: AuditArguments) -> Result<Exit, Failure> {
    let org = &*context.org().await?;
    match arguments.verb {
        AuditVerb::Log(arguments) => log(context, org, arguments).await?,
        AuditVerb::Replay { from, to, which, follow } => {
            if to.is_some_and(|to| to < from) {
                return Err(Failure::usage("--to lies before --from", "positions count upwards from 1"));
            }
            let mut print = |line: &str, _: &Value| context.output.line(line);
            read(context, org, Span { from, to, follow }, &which, &mut print).await?;
        }
        AuditVerb::Tail { which, all } => {
            let output = &context.output;
            let names = names(context, org).await;
            let from = head(context, org).await? + 1;
            output.note(&output.dim("Waiting for events; Ctrl-C ends this."));
            let mut print = |line: &str, event: &Value| match (output.json, all || !is_sign_of_life(event)) {
                (_, false) => Ok(()),
                (true, true) => output.line(line),
                (false, true) => output.line(&tail_line(output, &names, event)),
            };
            read(context, org, Span { from, to: None, follow: true }, &which, &mut print).await?;
        }
    }
    Ok(Exit::Ok)
}

async fn log(context: &Context, org: &str, arguments: LogArguments) -> Result<(), Failure> {
    let output = &context.output;
    let instant = |option: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => match output.instants.parse(&text) {
            Ok(instant) => Ok(Some(format!("{instant:.3}"))),
            Err(why) => Err(Failure::usage(format!("--{option}: {why}"), "")),
        },
    };
    let query = [
        ("from", instant("since", arguments.since)?),
        ("to", instant("until", arguments.until)?),
        ("actor", arguments.actor),
        ("type", arguments.event_type),
        ("project", arguments.project),
        ("workspace", arguments.workspace),
        ("link", arguments.link),
        ("correlation", arguments.request),
        ("outcome", arguments.outcome),
        ("order", arguments.oldest_first.then(|| "oldest".to_owned())),
    ];
    let page = context.client.list(&["v1", "orgs", org, "audit"], &query, usize::from(arguments.limit)).await?;
    output.result(&page, || table(output, &page))
}

fn table(output: &Output, page: &Value) -> String {
    let row = |item: &Value| {
        let denied = item["outcome"] == "denied";
        let attempts = item["attempts"].as_u64().filter(|attempts| *attempts > 1);
        let attempts = attempts.map(|attempts| format!(" x{attempts}")).unwrap_or_default();
        let outcome = if denied { format!("denied: {}{attempts}", cell(item.get("code"))) } else { "done".to_owned() };
        [
            cell(item.get("position")),
            output.instants.show_wire(item.get("at")),
            cell(item["actor"].get("name")),
            cell(item.get("surface")),
            cell(item.get("type")),
            outcome,
            cell(item.get("summary")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let header = ["POSITION", "WHEN", "WHO", "ON", "WHAT", "OUTCOME", "SUMMARY"];
    // An empty page with a next one: the audit is so long that the search was given up before its end.
    let given_up = page["next"].is_string() && page["items"].as_array().is_some_and(Vec::is_empty);
    if given_up {
        return output.table(
            header,
            rows,
            "Nothing that fits was found so far in a very long audit; name a time: --since, --until.",
        );
    }
    let mut text = output.table(header, rows, "Nothing was recorded that fits.");
    text.push_str(&more(output, page));
    text
}

/// The newest position that the audit knows; 0 in an empty log.
async fn head(context: &Context, org: &str) -> Result<u64, Failure> {
    let page = context.client.list(&["v1", "orgs", org, "audit"], &[], 1).await?;
    Ok(page["items"][0]["position"].as_u64().unwrap_or(0))
}

/// Names of the members by their ids. Who may not see them sees ids.
async fn names(context: &Context, org: &str) -> HashMap<String, String> {
    let page = context.client.list(&["v1", "orgs", org, "members"], &[], 1_000).await.unwrap_or_default();
    let members = page["items"].as_array().into_iter().flatten();
    members
        .map(|member| (cell(member.get("user")), cell(member.get("email"))))
        .filter(|(_, email)| !email.is_empty())
        .collect()
}

struct Span {
    from: u64,
    to: Option<u64>,
    follow: bool,
}

/// Times in a row that a stream may break without a single event before it is given up.
const BREAKS_MAX: u32 = 5;
const BREAK_PAUSE: Duration = Duration::from_millis(500);

/// Hands each event of the span to `print`, in order and once.
async fn read(
    context: &Context,
    org: &str,
    span: Span,
    which: &Which,
    print: &mut impl FnMut(&str, &Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut reader = Reader::new(span.from);
    let mut breaks = 0;
    loop {
        let query = [
            ("from", Some(reader.resume_from.to_string())),
            ("to", span.to.map(|to| to.to_string())),
            ("kind", which.kind.clone()),
            ("type", which.event_type.clone()),
            ("follow", span.follow.then(|| "true".to_owned())),
        ];
        let broken = match context.client.lines(&["v1", "orgs", org, "events"], &query).await {
            Ok(mut lines) => loop {
                match lines.next().await {
                    Ok(Some(line)) => {
                        if let Some(event) = reader.take(&line)? {
                            breaks = 0;
                            print(&line, &event)?;
                        }
                    }
                    Ok(None) => break None,
                    Err(failure) => break Some(failure),
                }
            },
            Err(failure) if reader.seen_any => Some(failure),
            Err(failure) => return Err(failure),
        };
        let finished = span.to.is_some_and(|to| reader.resume_from > to);
        match broken {
            None if !span.follow || finished => return Ok(()),
            // Not a broken connection: asking again would be answered the same.
            Some(failure @ (Failure::Refused(_) | Failure::SignedOut(_) | Failure::Local(_))) => return Err(failure),
            Some(failure) if breaks >= BREAKS_MAX => return Err(failure),
            // The server ends a stream when the token that opened it ends; the next one gets a new token.
            None | Some(_) => {
                breaks += 1;
                tokio::time::sleep(BREAK_PAUSE * breaks.min(BREAKS_MAX)).await;
            }
        }
    }
}

/// Where a stream of events is, so that it can be taken up again.
struct Reader {
    /// The position to ask for next. A commit may have been cut off in its middle, so this is the last one again.
    resume_from: u64,
    /// Ids of the events of that position that were handed out.
    seen: Vec<String>,
    seen_any: bool,
}

impl Reader {
    fn new(from: u64) -> Self {
        Self { resume_from: from, seen: Vec::new(), seen_any: false }
    }

    /// The event of a line; `None` where it was handed out before.
    fn take(&mut self, line: &str) -> Result<Option<Value>, Failure> {
        let unreadable = |why: &str| {
            Failure::local(
                format!("the API sent a line that is no event: {why}"),
                "the API and this envforge are of different versions; `envforge doctor` shows both",
            )
        };
        let event: Value = serde_json::from_str(line).map_err(|error| unreadable(&error.to_string()))?;
        let position = event["envforgeposition"].as_str().and_then(|text| text.parse::<u64>().ok());
        let (Some(position), Some(id)) = (position, event["id"].as_str()) else {
            return Err(unreadable("it has no position or id"));
        };
        if position < self.resume_from || (position == self.resume_from && self.seen.iter().any(|seen| seen == id)) {
            return Ok(None);
        }
        if position > self.resume_from {
            self.seen.clear();
        }
        self.resume_from = position;
        self.seen.push(id.to_owned());
        self.seen_any = true;
        Ok(Some(event))
    }
}

/// What comes every few seconds from each runtime that is awake, and tells nobody anything new.
fn is_sign_of_life(event: &Value) -> bool {
    let event_type = event["type"].as_str().unwrap_or_default();
    ["runtime.lease_renewed.", "runtime.activity_seen."].iter().any(|start| event_type.starts_with(start))
}

/// `08:00:03  cli  dana@acme.example  dev_link.issued  lnk_1  label="Dana's review" service=web`
fn tail_line(output: &Output, names: &HashMap<String, String>, event: &Value) -> String {
    let time = read_wire(event.get("time")).map_or_else(String::new, |time| output.instants.clock_time(time));
    let actor = cell(event.get("envforgeactor"));
    let who = match actor.split_once(':') {
        Some(("user", id)) => names.get(id).cloned().unwrap_or_else(|| id.to_owned()),
        _ => actor,
    };
    let event_type = cell(event.get("type"));
    let event_type = event_type.rsplit_once(".v").map_or(event_type.as_str(), |(bare, _)| bare);
    let subject = cell(event.get("subject"));
    let subject = subject.rsplit_once('/').map_or(subject.as_str(), |(_, key)| key);
    format!(
        "{}  {:<7}  {}  {}  {}  {}",
        output.dim(&time),
        printable(&cell(event.get("envforgesurface"))),
        printable(&who),
        output.bold(&printable(event_type)),
        printable(subject),
        output.dim(&printable(&facts(&event["data"]))),
    )
    .trim_end()
    .to_owned()
}

/// Facts that fit on a line.
const FACTS_MAX: usize = 5;
const FACT_CHARS_MAX: usize = 60;

/// The plain fields of an event's data.
fn facts(data: &Value) -> String {
    let fields = data.as_object().into_iter().flatten();
    let plain = fields.filter_map(|(name, value)| {
        let text = match value {
            Value::String(text) if text.contains(' ') => format!("\"{text}\""),
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        };
        let text: String = text.replace(['\n', '\t'], " ").chars().take(FACT_CHARS_MAX).collect();
        Some(format!("{name}={text}"))
    });
    plain.take(FACTS_MAX).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(position: u64, id: &str) -> String {
        json!({"id": id, "envforgeposition": position.to_string(), "data": {}}).to_string()
    }

    #[test]
    fn a_stream_that_is_taken_up_again_neither_repeats_nor_loses_an_event() {
        let mut reader = Reader::new(5);
        let mut got = Vec::new();
        // Cut off in the middle of commit 7, which has the events b:0 and b:1.
        for (position, id) in [(6, "a:0"), (7, "b:0")] {
            got.extend(reader.take(&line(position, id)).unwrap());
        }
        assert_eq!(reader.resume_from, 7);
        for (position, id) in [(7, "b:0"), (7, "b:1"), (9, "c:0")] {
            got.extend(reader.take(&line(position, id)).unwrap());
        }
        let ids: Vec<_> = got.iter().map(|event| event["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a:0", "b:0", "b:1", "c:0"]);
        assert!(reader.take("{}").is_err());
        assert!(reader.take("not json").is_err());
    }

    #[test]
    fn a_tail_line_names_who_did_what_with_its_facts() {
        let event = json!({"time": "2026-11-24T08:00:03.000Z", "envforgeactor": "user:usr_1", "envforgesurface": "cli",
            "type": "dev_link.issued.v1", "subject": "dev_link/lnk_1",
            "data": {"label": "Dana's review", "service": "web", "families": ["web"], "wake_budget": null}});
        let names = HashMap::from([("usr_1".to_owned(), "dana@acme.example".to_owned())]);
        assert_eq!(
            tail_line(&Output::plain(), &names, &event),
            "08:00:03  cli      dana@acme.example  dev_link.issued  lnk_1  label=\"Dana's review\" service=web"
        );
        assert!(tail_line(&Output::plain(), &HashMap::new(), &event).contains("  usr_1  "));
    }

    #[test]
    fn denied_attempts_show_why_and_how_often() {
        let page = json!({"items": [
            {"position": 7, "at": "2026-11-24T08:00:00.000Z", "actor": {"kind": "link_visitor", "id": "lnk_1", "name": "link"},
             "surface": "gateway", "type": "app.forward", "outcome": "denied", "code": "link_ended", "attempts": 3,
             "summary": "was refused"}], "next": null});
        let text = table(&Output::plain(), &page);
        assert!(text.contains("denied: link_ended x3"), "{text}");
    }
}
