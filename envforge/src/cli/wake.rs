//! Waking a workspace and watching it come up, stage by stage.
//!
//! The server wakes; this only looks on, so that an interrupted command leaves nothing half done.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::client::{Answer, view};
use super::failure::Failure;
use super::here;
use super::instant::show_length_ms;
use super::output::{Output, printable};
use crate::server::DataDir;

/// Between two looks at the runtime, while a person waits for each stage; the server reads one indexed row.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Between two looks at one that takes longer than `PROMPT_FOR`.
const LOOK_INTERVAL_LATER: Duration = Duration::from_millis(500);
const PROMPT_FOR: Duration = Duration::from_secs(15);

/// A runtime, as far as commands need it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Runtime {
    /// `asleep`, `waking`, `ready`, `sleeping` or `failed`.
    pub phase: String,
    #[serde(default)]
    pub stage: Option<String>,
    /// Counts the wakes.
    #[serde(default)]
    pub epoch: u64,
    #[serde(default)]
    pub failure: Option<String>,
    #[serde(default)]
    pub commit: Option<String>,
    #[serde(default)]
    pub awake_because: Option<String>,
    #[serde(default)]
    pub asleep_because: Option<String>,
    #[serde(default)]
    pub services: Vec<Service>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Service {
    pub name: String,
    #[serde(default)]
    pub route: String,
    #[serde(default)]
    pub ready: bool,
}

#[derive(Deserialize)]
struct Asked {
    phase: String,
    epoch: u64,
}

/// What a watched runtime is at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// Not there yet; what it is doing.
    Coming(String),
    Ready,
    /// Will not become ready by itself; why.
    Over(String),
}

/// Asks for a wake, and names before it what the workspace was given and nothing of it declares. Returns the wake to wait for: the present one, or the next where the runtime is still going to sleep.
pub(crate) async fn ask(context: &Context, org: &str, workspace: &str, body: Value) -> Result<u64, Failure> {
    name_undeclared(context, org, workspace).await?;
    let answer = context.client.post(&["v1", "orgs", org, "workspaces", workspace, "wake"], body).await?;
    awaited(&answer)
}

/// What cannot be looked at says nothing: it stops no wake.
async fn name_undeclared(context: &Context, org: &str, workspace: &str) -> Result<(), Failure> {
    let Ok(secrets) = context.client.get(&["v1", "orgs", org, "workspaces", workspace, "secrets"], &[]).await else {
        return Ok(());
    };
    for name in secrets.body["undeclared"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if context.output.json {
            context.output.event(&json!({ "event": "undeclared_secret", "workspace": workspace, "name": name }))?;
        } else {
            let what = "is set for this workspace, and nothing in envforge.yml declares it: mistyped, or left over";
            context.output.warn(&format!("the secret {name} {what}"));
        }
    }
    Ok(())
}

fn awaited(answer: &Answer) -> Result<u64, Failure> {
    let asked: Asked = answer.view()?;
    Ok(if asked.phase == "sleeping" { asked.epoch + 1 } else { asked.epoch })
}

/// Waits until wake number `epoch` is ready. Shows each stage to people on standard error, to programs as JSON Lines on
/// standard output. Returns the runtime as the API describes it.
///
/// # Errors
/// `Failed` where the wake failed or somebody put the runtime to sleep, `TimedOut` after `patience`.
pub(crate) async fn until_ready(
    context: &Context,
    org: &str,
    workspace: &str,
    epoch: u64,
    patience: Duration,
) -> Result<Value, Failure> {
    let begun = Instant::now();
    let mut progress = Progress::start(&context.output, workspace, epoch);
    loop {
        let answer = context.client.get(&["v1", "orgs", org, "workspaces", workspace, "runtime"], &[]).await?;
        let runtime: Runtime = answer.view()?;
        match sight(&runtime, epoch) {
            Sight::Ready => {
                progress.end()?;
                return Ok(answer.body);
            }
            Sight::Over(why) => {
                progress.end()?;
                let mend = if runtime.phase == "failed" { "mend it and run" } else { "run" };
                let mut hint =
                    format!("{mend} the command again; `envforge workspace show {workspace}` shows its state");
                if runtime.phase == "failed" && context.client.api().is_loopback() {
                    hint.push_str(&output_place(context, org, workspace).await);
                }
                return Err(Failure::failed(format!("workspace {workspace} did not become ready: {why}"), hint));
            }
            Sight::Coming(stage) => progress.reached(&stage)?,
        }
        if begun.elapsed() >= patience {
            let stage = progress.stage.clone().unwrap_or_default();
            progress.end()?;
            return Err(Failure::timed_out(
                format!("workspace {workspace} is not ready after {} s; it is at `{stage}`", patience.as_secs()),
                format!("it goes on by itself: `envforge workspace show {workspace}`; wait longer with --timeout"),
            ));
        }
        let pause = if begun.elapsed() < PROMPT_FOR { LOOK_INTERVAL } else { LOOK_INTERVAL_LATER };
        tokio::time::sleep(pause).await;
    }
}

/// Where the services' output lies, for whoever sits at the machine that runs them; no verb and no link shows it.
async fn output_place(context: &Context, org: &str, workspace: &str) -> String {
    // Not known to the API's answer: then the place is named without it.
    let id = match here::workspace(context, org, workspace).await {
        Ok(known) => known.id,
        Err(_) => "WORKSPACE-ID".to_owned(),
    };
    output_sentence(DataDir::default_path().ok().as_deref(), &id)
}

fn output_sentence(data: Option<&Path>, id: &str) -> String {
    let below = format!("runtime/workspaces/{id}/output");
    match data.map(|data| data.join(&below)).filter(|folder| folder.is_dir()) {
        Some(folder) => format!("; what the services wrote is in {}/SERVICE.log", folder.display()),
        None => format!("; what the services wrote is in the data directory of `envforge dev`: {below}/SERVICE.log"),
    }
}

fn sight(runtime: &Runtime, epoch: u64) -> Sight {
    if runtime.epoch < epoch {
        return Sight::Coming(if runtime.phase == "sleeping" { "going to sleep first" } else { "queued" }.to_owned());
    }
    match runtime.phase.as_str() {
        "ready" => Sight::Ready,
        "waking" => Sight::Coming(stage_in_words(runtime.stage.as_deref())),
        "failed" => {
            let place = runtime.stage.as_ref().map(|stage| format!(" while {}", stage_in_words(Some(stage))));
            let reason = runtime.failure.as_deref().unwrap_or("the host gave no reason");
            Sight::Over(format!("it failed{}: {reason}", place.unwrap_or_default()))
        }
        "asleep" | "sleeping" => Sight::Over(
            match runtime.asleep_because.as_deref() {
                Some("host_lost") => "its host died; waking it again starts it anew",
                Some("shutdown") => "EnvForge was stopped on its host",
                Some("idle") => "nobody used it, and it went to sleep",
                Some("workspace_archived") => "the workspace was archived",
                Some("usage_cap") => "the organization's cap on usage is reached",
                Some("secret_rotated") => "a secret has another version, and it is started again",
                Some("person") => "somebody put it to sleep",
                Some(_) | None => "it was put to sleep",
            }
            .to_owned(),
        ),
        other => Sight::Coming(other.to_owned()),
    }
}

fn stage_in_words(stage: Option<&str>) -> String {
    match stage {
        None => "looking for a host",
        Some("placed") => "placed on a host",
        Some("checking_out") => "checking out the branch",
        Some("starting") => "starting services",
        Some("probing") => "waiting until routes answer",
        Some(other) => other,
    }
    .to_owned()
}

/// What is shown while waiting.
struct Progress<'a> {
    output: &'a Output,
    workspace: String,
    epoch: u64,
    spinner: Option<ProgressBar>,
    stage: Option<String>,
    stage_since: Instant,
}

impl<'a> Progress<'a> {
    fn start(output: &'a Output, workspace: &str, epoch: u64) -> Self {
        let spinner = output.live.then(|| {
            let bar =
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_finish(ProgressFinish::AndClear);
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let workspace = workspace.to_owned();
        Self { output, workspace, epoch, spinner, stage: None, stage_since: Instant::now() }
    }

    fn reached(&mut self, stage: &str) -> Result<(), Failure> {
        if self.stage.as_deref() == Some(stage) {
            return Ok(());
        }
        self.close_stage();
        self.stage = Some(stage.to_owned());
        self.stage_since = Instant::now();
        match &self.spinner {
            Some(spinner) => spinner.set_message(printable(stage)),
            None if self.output.json => {
                self.output.event(&json!({
                    "event": "stage", "workspace": self.workspace, "epoch": self.epoch, "stage": stage,
                }))?;
            }
            None => {}
        }
        Ok(())
    }

    /// The stage that is over, as a line that stays.
    fn close_stage(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        let length = show_length_ms(u64::try_from(self.stage_since.elapsed().as_millis()).unwrap_or(u64::MAX));
        let line = format!("  {} {}", printable(&stage), self.output.dim(&length));
        match &self.spinner {
            Some(spinner) => spinner.println(line),
            None => self.output.note(&line),
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.close_stage();
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        Ok(())
    }
}

/// Reads a runtime out of an answer that was printed or kept.
pub(crate) fn read(value: &Value) -> Result<Runtime, Failure> {
    view(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime(phase: &str, epoch: u64, stage: Option<&str>) -> Runtime {
        let stage = stage.map(str::to_owned);
        Runtime {
            phase: phase.into(),
            stage,
            epoch,
            failure: Some("`web` exited with 1".into()),
            commit: None,
            awake_because: None,
            asleep_because: None,
            services: vec![],
        }
    }

    #[test]
    fn an_older_wake_that_is_still_ready_is_not_the_one_we_wait_for() {
        assert!(matches!(sight(&runtime("ready", 3, None), 4), Sight::Coming(_)));
        assert_eq!(sight(&runtime("sleeping", 3, None), 4), Sight::Coming("going to sleep first".into()));
        assert_eq!(sight(&runtime("ready", 4, None), 4), Sight::Ready);
        assert_eq!(sight(&runtime("ready", 5, None), 4), Sight::Ready);
    }

    #[test]
    fn a_wake_that_cannot_succeed_any_more_is_not_waited_for() {
        assert_eq!(
            sight(&runtime("failed", 4, Some("probing")), 4),
            Sight::Over("it failed while waiting until routes answer: `web` exited with 1".into())
        );
        let because = |cause: Option<&str>| {
            let slept = Runtime { asleep_because: cause.map(str::to_owned), ..runtime("asleep", 4, None) };
            match sight(&slept, 4) {
                Sight::Over(why) => why,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(because(Some("person")), "somebody put it to sleep");
        assert_eq!(because(Some("host_lost")), "its host died; waking it again starts it anew");
        assert_eq!(because(None), "it was put to sleep");
        assert!(matches!(sight(&runtime("failed", 3, None), 4), Sight::Coming(_)), "that was the wake before");
    }

    #[test]
    fn whoever_sits_at_the_machine_is_told_where_the_output_of_the_services_lies() {
        let data = tempfile::tempdir().unwrap();
        let unknown = output_sentence(Some(data.path()), "wsp_1");
        assert!(unknown.contains("`envforge dev`: runtime/workspaces/wsp_1/output/SERVICE.log"), "{unknown}");
        let folder = data.path().join("runtime/workspaces/wsp_1/output");
        std::fs::create_dir_all(&folder).unwrap();
        let known = output_sentence(Some(data.path()), "wsp_1");
        assert!(known.ends_with(&format!("{}/SERVICE.log", folder.display())), "{known}");
    }

    #[test]
    fn a_wake_asked_for_while_going_to_sleep_is_the_next_one() {
        let answer = |phase: &str| Answer { body: json!({"phase": phase, "epoch": 7}), date: None };
        assert_eq!(awaited(&answer("sleeping")).unwrap(), 8);
        assert_eq!(awaited(&answer("waking")).unwrap(), 7);
        assert_eq!(awaited(&answer("ready")).unwrap(), 7);
    }
}
