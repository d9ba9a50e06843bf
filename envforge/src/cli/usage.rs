//! `envforge usage`: what was awake for how long, by service, link, cause, workspace or project.
//!
//! `--json` gives the meter's integers; hours are for people. Not here: prices.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::show_length_ms;
use super::output::{Output, cell};
use super::workspace::more;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge usage --since 7d
  envforge usage --by link --since 2026-11-01
  envforge usage --running

The meter counts from ready to sleep; waking, failed and sleeping cost nothing. With --json: service_ms, millicore_ms and mib_ms are
integers (milliseconds; millicores x milliseconds; MiB x milliseconds),
and unrecorded_service_ms is the part of service_ms that is running and not recorded yet.")]
pub(crate) struct UsageArguments {
    /// What to sum up by
    #[arg(long, value_enum, default_value_t = By::Service)]
    by: By,
    /// Not before, rounded down to the UTC hour: 7d, 2026-11-01
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Before, rounded up to the UTC hour
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Id of a project
    #[arg(long)]
    project: Option<String>,
    /// Workspace, by slug or id
    #[arg(long)]
    workspace: Option<String>,
    /// Id of a link
    #[arg(long)]
    link: Option<String>,
    /// What is awake right now instead
    #[arg(long, conflicts_with_all = ["by", "since", "until", "project", "workspace", "link"])]
    running: bool,
    /// Most rows to show
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Service,
    Link,
    Cause,
    Workspace,
    Project,
}

impl By {
    const fn token(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Link => "link",
            Self::Cause => "cause",
            Self::Workspace => "workspace",
            Self::Project => "project",
        }
    }
}

pub(super) async fn run(context: &Context, arguments: UsageArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    let limit = usize::from(arguments.limit);
    if arguments.running {
        let page = client.list(&["v1", "orgs", org, "usage", "running"], &[], limit).await?;
        output.result(&page, || running(output, &page))?;
        return Ok(Exit::Ok);
    }
    let instant = |option: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => match output.instants.parse(&text) {
            Ok(instant) => Ok(Some(format!("{instant:.3}"))),
            Err(why) => Err(Failure::usage(format!("--{option}: {why}"), "")),
        },
    };
    let query = [
        ("group_by", Some(arguments.by.token().to_owned())),
        ("from", instant("since", arguments.since)?),
        ("to", instant("until", arguments.until)?),
        ("project", arguments.project),
        ("workspace", arguments.workspace),
        ("link", arguments.link),
    ];
    let page = client.list(&["v1", "orgs", org, "usage"], &query, limit).await?;
    output.result(&page, || table(output, arguments.by, &page))?;
    Ok(Exit::Ok)
}

fn number(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or(0)
}

fn table(output: &Output, by: By, page: &Value) -> String {
    let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut rows: Vec<_> = items
        .iter()
        .map(|row| {
            let key = cell(row.get("key"));
            let key = if key.is_empty() { format!("(no {})", by.token()) } else { key };
            line(key, [number(row, "service_ms"), number(row, "millicore_ms"), number(row, "mib_ms")])
        })
        .collect();
    if items.len() > 1 {
        let sum = |name: &str| items.iter().fold(0, |sum: u64, row| sum.saturating_add(number(row, name)));
        let total = if page["next"].is_string() { "shown" } else { "total" };
        rows.push(line(total.to_owned(), [sum("service_ms"), sum("millicore_ms"), sum("mib_ms")]));
    }
    let header = [by.token().to_uppercase(), "AWAKE".into(), "MS".into(), "CORE-HOURS".into(), "GIB-HOURS".into()];
    let header: [&str; 5] = std::array::from_fn(|index| header[index].as_str());
    let mut text = output.table(header, rows, "Nothing was awake in this time.");
    let unrecorded = items.iter().fold(0, |sum: u64, row| sum.saturating_add(number(row, "unrecorded_service_ms")));
    if unrecorded > 0 {
        text.push_str(&format!("\n{} of it is running and not recorded yet.", show_length_ms(unrecorded)));
    }
    text.push_str(&more(output, page));
    text
}

fn line(key: String, [service_ms, millicore_ms, mib_ms]: [u64; 3]) -> [String; 5] {
    [key, show_length_ms(service_ms), service_ms.to_string(), hours(millicore_ms, 1_000), hours(mib_ms, 1_024)]
}

const HOUR_MS: u128 = 3_600_000;

/// `amount / unit` in hours with four decimals, rounded half up, by integers alone.
fn hours(amount_ms: u64, unit: u128) -> String {
    let divisor = HOUR_MS * unit;
    let scaled = (u128::from(amount_ms) * 10_000 + divisor / 2) / divisor;
    format!("{}.{:04}", scaled / 10_000, scaled % 10_000)
}

fn running(output: &Output, page: &Value) -> String {
    let row = |row: &Value| {
        let cause = &row["cause"];
        let by = ["name", "link", "by"].iter().map(|name| cell(cause.get(*name))).find(|text| !text.is_empty());
        [
            cell(row.get("workspace")),
            cell(row.get("service")),
            output.instants.show_wire(row.get("since")),
            format!("{} {}", cell(cause.get("kind")), by.unwrap_or_default()),
            show_length_ms(number(row, "service_ms")),
            hours(number(row, "millicore_ms"), 1_000),
            hours(number(row, "mib_ms"), 1_024),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let header = ["WORKSPACE", "SERVICE", "READY SINCE", "WOKEN BY", "AWAKE", "CORE-HOURS", "GIB-HOURS"];
    let mut text = output.table(header, rows, "Nothing is awake.");
    text.push_str(&more(output, page));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hours_are_computed_by_integers_and_rounded_half_up() {
        assert_eq!(hours(3_600_000 * 1_000, 1_000), "1.0000");
        assert_eq!(hours(3_600_000 * 250, 1_000), "0.2500");
        assert_eq!(hours(0, 1_024), "0.0000");
        assert_eq!(hours(180_000, 1_000), "0.0001");
        assert_eq!(hours(u64::MAX, 1_000), "5124095576.0304");
    }

    #[test]
    fn rows_end_with_their_total() {
        let page = json!({"items": [
            {"key": "web", "service_ms": 5_400_000, "millicore_ms": 1_350_000_000_u64, "mib_ms": 1_382_400_000_u64},
            {"key": "", "service_ms": 1_000, "millicore_ms": 0, "mib_ms": 0}], "next": null});
        let text = table(&Output::plain(), By::Link, &page);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "LINK       AWAKE       MS       CORE-HOURS  GIB-HOURS");
        assert_eq!(lines[1], "web        1 h 30 min  5400000  0.3750      0.3750");
        assert!(lines[2].starts_with("(no link)  1.0 s"), "{text}");
        assert!(lines[3].starts_with("total      1 h 30 min  5401000"), "{text}");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn what_runs_is_in_the_sums_and_is_said_to_be() {
        let row = |key: &str, unrecorded: u64| {
            json!({"key": key, "service_ms": 5_000, "millicore_ms": 0, "mib_ms": 0,
            "unrecorded_service_ms": unrecorded})
        };
        let page = json!({"items": [row("api", 0), row("web", 5_000)], "next": null});
        let text = table(&Output::plain(), By::Service, &page);
        assert_eq!(text.lines().last(), Some("5.0 s of it is running and not recorded yet."), "{text}");
    }
}
