//! `envforge host`: the machines that an organization's workspaces wake on, by name and state.
//!
//! What machine a host is, and where, is shown to nobody. An enrolment's token is shown once, or put into a file that only its owner may
//! read.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::parse_length;
use super::output::{Output, cell, printable};
use super::private_file;
use super::session::shown;

#[derive(Args, Debug)]
pub(crate) struct HostArguments {
    #[command(subcommand)]
    verb: HostVerb,
}

#[derive(Subcommand, Debug)]
enum HostVerb {
    /// The hosts with their states
    Ls,
    /// Let an agent enrol as a host, once; a name that is there enrols again
    #[command(after_help = "\
On the machine that is to be the host:
  envforge agent --control-plane HOST:PORT --enrolment-file FILE --data /var/lib/envforge-agent")]
    Enrol {
        /// Lower-case letters, digits and single hyphens
        #[arg(value_name = "NAME")]
        name: String,
        /// How long the token may be used: 30s to 24h [default: 15m]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        lifetime: Option<u64>,
        /// Put the token into this file instead of showing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Have nothing more placed on a host; what is awake there stays until it sleeps
    Drain {
        /// Name or id
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Trust a host's agent no more, at once
    Revoke {
        /// Name or id
        #[arg(value_name = "HOST")]
        host: String,
    },
}

pub(super) async fn run(context: &Context, arguments: HostArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &context.org().await?;
    match arguments.verb {
        HostVerb::Ls => {
            let page = client.get(&["v1", "orgs", org, "hosts"], &[]).await?.body;
            output.result(&page, || table(output, &page))?;
        }
        HostVerb::Enrol { name, lifetime, out } => {
            let mut body = json!({ "name": name });
            if let Some(seconds) = lifetime {
                body["expires_in_seconds"] = json!(seconds);
            }
            let mut issued = client.post(&["v1", "orgs", org, "hosts"], body).await?.body;
            if let Some(file) = &out {
                let token = issued["token"].take();
                private_file::write(file, token.as_str().unwrap_or_default())?;
                issued["token"] = Value::Null;
            }
            output.result(&issued, || told(output, &issued, out.as_deref()))?;
        }
        HostVerb::Drain { host } => {
            let drained = client.post(&["v1", "orgs", org, "hosts", &host, "drain"], json!({})).await?.body;
            output.result(&drained, || format!("Nothing more is placed on the host {}.", printable(&host)))?;
        }
        HostVerb::Revoke { host } => {
            let revoked = client.delete(&["v1", "orgs", org, "hosts", &host], &[]).await?.body;
            output.result(&revoked, || {
                let awake = match revoked["runtimes"].as_u64() {
                    Some(1) => "1 workspace was awake there".to_owned(),
                    count => format!("{} workspaces were awake there", count.unwrap_or_default()),
                };
                let closed = shown(&revoked["receipt"]);
                format!("The host {} is trusted no more; {awake}. {closed}", printable(&host))
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn told(output: &Output, issued: &Value, out: Option<&std::path::Path>) -> String {
    let until = output.instants.show_wire(issued.get("expires_at"));
    let at = issued["control_plane"].as_str().map_or_else(|| "HOST:PORT".to_owned(), printable);
    let (shown, file) = match out {
        Some(file) => (String::new(), printable(&file.display().to_string())),
        None => (format!("\n{}", cell(issued.get("token"))), "FILE".to_owned()),
    };
    let once = output.dim("It works once. On the machine that is to be the host:");
    format!(
        "An agent may enrol as the host {} until {until}.{shown}\n{once}\n  \
         envforge agent --control-plane {at} --enrolment-file {file} --data /var/lib/envforge-agent",
        cell(issued.get("name")),
    )
}

fn table(output: &Output, page: &Value) -> String {
    let row = |host: &Value| {
        [
            cell(host.get("name")),
            cell(host.get("state")),
            cell(host.get("workspaces")),
            output.instants.show_wire(host.get("until")),
            cell(host.get("id")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    output.table(["HOST", "STATE", "WORKSPACES", "UNTIL", "ID"], rows, "No hosts. Add one: `envforge host enrol NAME`.")
}
