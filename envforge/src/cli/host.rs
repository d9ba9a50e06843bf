//! `envforge host`: the machines that an organization's workspaces wake on, by name and state, and what those at AWS may do there.
//!
//! What machine a host is, and where, is shown to nobody. An enrolment's token is shown once, or put into a file that only its owner may
//! read.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use envforge_aws::{Deployment, InstancePolicy, KeyArn};
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
    /// Print the IAM policy that this organization's machines at AWS need, and no more than that
    #[command(after_help = "\
It goes to the role that deploy/aws/organization makes, whose instance profile is envforge-DEPLOYMENT-ORGANIZATION:
  terraform apply -var instance_policy=\"$(envforge host policy --deployment NAME --key ARN)\" …
It reads the organization's enrolment tokens and no secret, and stays as it is whichever workspaces come and go.")]
    Policy {
        /// `deployment` of the fleet's file
        #[arg(long, value_name = "NAME")]
        deployment: Deployment,
        /// The organization's KMS key: `kms_key_arn` of deploy/aws/organization
        #[arg(long, value_name = "ARN")]
        key: KeyArn,
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
        HostVerb::Policy { deployment, key } => {
            let policy = policy(context, org, deployment, key).await?;
            let document = policy.document().map_err(|error| Failure::local(error.to_string(), ""))?;
            output.result(&document, || serde_json::to_string_pretty(&document).unwrap_or_default())?;
        }
    }
    Ok(Exit::Ok)
}

/// Of the machines of the organization that this is about.
async fn policy(context: &Context, org: &str, deployment: Deployment, key: KeyArn) -> Result<InstancePolicy, Failure> {
    let organization = context.client.get(&["v1", "orgs", org], &[]).await?.body;
    let org = id(organization["id"].as_str().unwrap_or_default())?;
    let (secrets, workspaces, projects) = Default::default();
    Ok(InstancePolicy { deployment, org, key, secrets, workspaces, projects })
}

fn id<T: FromStr<Err: Display>>(text: &str) -> Result<T, Failure> {
    let hint = "the API and this envforge are of different versions; `envforge doctor` shows both";
    text.parse().map_err(|error| Failure::local(format!("the API told an id that is none: {error}"), hint))
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
