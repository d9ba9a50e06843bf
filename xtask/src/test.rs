//! `cargo xtask test`: the tools, then the tests and the documentation's examples.
//!
//! What needs AWS's SDKs runs apart, behind the feature `aws`: they are built once, in the dev profile, and
//! nobody who changes anything else builds them. Its lints run here for the same reason, and not in `cargo xtask check`. It does not know which test needs which server: `.config/nextest.toml` and the names of tests say that.

use crate::tools::{self, Toolbox};
use crate::workspace::{Workspace, on_path};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::process::{Command, Stdio};

/// `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave out what starts a server or a browser (binaries, modules and tests with `nats`, `jetstream`, `postgres`, `browser`,
    /// `journey`, `cluster` or `moto` in their name); installs nothing.
    #[arg(long)]
    fast: bool,
    /// Passed on to `cargo nextest run`, e.g. `-p envforge-domain` or part of a test's name. With any, documentation examples do not run.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// What `--fast` leaves out. The same words stand in `.config/nextest.toml`, and `tests/tests/architecture.rs` holds the two together.
const SERVERS: &str = "nats|jetstream|postgres|browser|journey|cluster|moto";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let nextest = on_path("cargo-nextest").is_some();
    if options.fast && !nextest {
        bail!(
            "--fast picks tests by the name of their binary, which only cargo-nextest does: cargo install cargo-nextest --locked"
        );
    }
    let toolbox = if options.fast { None } else { Some(tools::ensure(workspace, tools::FOR_TESTS)?) };
    // The runner shows no output of tests that pass.
    if on_path("terraform").is_none() {
        println!("terraform is not installed: `terraform validate` looks at nothing in deploy/aws");
    }
    let mut failed = Vec::new();

    // Examples first, so that the runner's summary is the last thing one reads.
    if nextest && options.arguments.is_empty() && !options.fast {
        let mut examples = workspace.cargo();
        examples.args(["test", "--workspace", "--locked", "--doc", "--quiet"]);
        // Each crate prints six lines, mostly about no examples at all: shown when one fails.
        let output = with_tools(&mut examples, toolbox.as_ref()).stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            println!("documentation examples: {} passed", passed(&text));
        } else {
            println!("{text}");
            failed.push("documentation examples");
        }
    }
    // Cargo ignores `-p` next to `--workspace`.
    let narrowed =
        options.arguments.iter().any(|argument| argument.starts_with("-p") || argument.starts_with("--package"));
    let scope = if narrowed { None } else { Some("--workspace") };
    let mut tests = workspace.cargo();
    if nextest {
        tests.args(["nextest", "run", "--locked"]).args(scope);
        // One more than there are cores, for a test that mostly waits (`.config/nextest.toml`).
        if !options
            .arguments
            .iter()
            .any(|argument| argument.starts_with("--test-threads") || argument.starts_with("-j"))
        {
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            tests.args(["--test-threads", &(cores + 1).to_string()]);
        }
        if options.fast {
            tests.args(["-E", &format!("not (binary(/{SERVERS}/) | test(/{SERVERS}/))")]);
        }
        tests.args(&options.arguments);
    } else {
        println!(
            "cargo-nextest is not installed: running `cargo test`, which is slower, shows less and does not end a test that hangs."
        );
        println!("To get it: cargo install cargo-nextest --locked");
        tests.args(["test", "--locked", "--no-fail-fast"]).args(scope).args(&options.arguments);
    }
    let status = with_tools(&mut tests, toolbox.as_ref()).status();
    if !status.with_context(|| format!("cannot start `{}`", crate::workspace::shown(&tests)))?.success() {
        failed.push("tests");
    }
    if options.arguments.is_empty() && !options.fast {
        let mut aws = workspace.cargo();
        aws.args(if nextest { ["nextest", "run"].as_slice() } else { ["test", "--no-fail-fast"].as_slice() });
        aws.args(["--locked", "--workspace", "--features", "envforge/aws", "--bin", "envforge"]);
        aws.args(["--test", "moto", "--test", "journey_machines", "--test", "libraries"]);
        println!(
            "tests with feature aws: AWS's SDKs are built, about four CPU minutes and 7 GB of memory the first time"
        );
        let status = with_tools(&mut aws, toolbox.as_ref()).status();
        if !status.with_context(|| format!("cannot start `{}`", crate::workspace::shown(&aws)))?.success() {
            failed.push("tests with feature aws");
        }
        // Here and not in `cargo xtask check`: without the SDKs that the tests need anyway, this is the longest step of all.
        let mut lints = workspace.cargo();
        lints.args(["clippy", "--workspace", "--all-targets", "--locked", "--features", "envforge/aws", "--quiet"]);
        lints.args(["--", "-D", "warnings"]);
        println!(
            "lints with feature aws: the SDKs are checked the first time, about two CPU minutes and 6 GB of memory"
        );
        if !lints.status().with_context(|| format!("cannot start `{}`", crate::workspace::shown(&lints)))?.success() {
            failed.push("lints with feature aws");
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn with_tools<'a>(command: &'a mut Command, toolbox: Option<&Toolbox>) -> &'a mut Command {
    // The keyring of whoever runs the tests is none of theirs.
    command.env("ENVFORGE_CREDENTIALS", "file").envs(toolbox.into_iter().flat_map(Toolbox::environment))
}

/// The sum over lines like `test result: ok. 3 passed; 0 failed; ...`.
fn passed(text: &str) -> usize {
    let results = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split_whitespace().next()?.parse::<usize>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_examples_are_summed_over_crates() {
        let text = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed\n\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(passed(text), 3);
    }
}
