//! What ends a shell: lost rights, a session's end, an archived workspace, EnvForge's own end. At once, with all that it started.

use std::io::Read as _;
use std::process::Child;
use std::time::{Duration, Instant};

use envforge_testkit::wait_until;

use crate::place::{DANA, DEADLINE, Place, is_dead};
use crate::tty::Tty;

const AT_ONCE: Duration = Duration::from_secs(1);
/// Until what does not want to end was killed.
const DEAD: Duration = Duration::from_secs(3);

fn until_it_ends(child: &mut Child) -> String {
    wait_until("the end of the command line", DEADLINE, || child.try_wait().unwrap().is_some());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_lost_right_ends_what_is_open_within_a_second_and_what_lasts_too() {
    let place = Place::start();
    let ends: [(&[&str], &str, &str); 3] = [
        (&["org", "role", "revoke", DANA, "developer"], "you may not do this any more", "right lost"),
        (&["org", "user", "sign-out", DANA], "your session was ended", "session ended"),
        (&["workspace", "archive", "main", "--yes"], "the workspace was archived", "workspace archived"),
    ];
    for (end, said, reason) in ends {
        let mut terminal = Tty::start(place.command("dana", &["shell", "main"]));
        terminal.shows("work#");
        terminal.types(&format!("{}\r", place.tenacious()));
        place.until_they_run(3);
        let mut command = place.begin("dana", &["shell", "main", "--", "sleep", "100000"]);
        wait_until("the second shell", DEADLINE, || {
            place.json("owner", &["audit", "log", "--type", "shell.connected"])["items"][0]["summary"]
                .as_str()
                .unwrap()
                .contains("one command")
        });
        let asked = Instant::now();
        let changed = place.client("owner", end, "");
        let answered = Instant::now();
        assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
        let receipt = String::from_utf8_lossy(&changed.stdout).into_owned();
        assert!(receipt.contains(", 2 shells in "), "{reason}: {receipt}");
        terminal.ends();
        until_it_ends(&mut command);
        assert!(answered.elapsed() < AT_ONCE, "{reason}: {:?} after {:?}", answered.elapsed(), answered - asked);
        terminal.shows(said);
        assert!(terminal.is_cooked());
        wait_until("the end of what the terminal left", DEADLINE, || place.alive() == 0);
        assert!(answered.elapsed() < DEAD, "{reason}: {:?}", answered.elapsed());
        place.ended_as(reason);
        let refused = place.client("dana", &["shell", "main", "--", "true"], "");
        assert_ne!(refused.status.code(), Some(0));
        place.make_developer();
        place.login("dana", DANA);
    }
}

#[test]
fn after_kill_9_nothing_of_shells_is_left_and_the_log_says_so() {
    let mut place = Place::start();
    let mut terminal = Tty::start(place.command("dana", &["shell", "main"]));
    terminal.shows("work#");
    terminal.types(&format!("{}\r", place.tenacious()));
    place.until_they_run(3);
    let mut command = place.begin("dana", &["shell", "main", "--", "sleep", "100000"]);
    let mut job = place.begin("dana", &["run", "long", "--workspace", "main"]);
    wait_until("the job", DEADLINE, || {
        !place.json("owner", &["audit", "log", "--type", "job.started"])["items"].as_array().unwrap().is_empty()
    });
    place.dev.kill9();
    terminal.ends();
    until_it_ends(&mut command);
    until_it_ends(&mut job);
    assert!(terminal.is_cooked(), "whatever becomes of the server");
    place.start_again();
    wait_until("the end of all processes", DEADLINE, || place.processes().iter().all(|pid| is_dead(pid)));
    place.ended_as("lost");
    wait_until("two ends that nobody saw", DEADLINE, || {
        place.ends().iter().filter(|end| end.ends_with("lost")).count() == 2
    });
    wait_until("the job's end", DEADLINE, || {
        let rows = place.json("owner", &["audit", "log", "--type", "job.finished"]);
        rows["items"][0]["summary"].as_str().is_some_and(|text| text.ends_with("lost"))
    });
    // A stop that is asked for leaves nothing either.
    place.login("dana", DANA);
    let mut terminal = Tty::start(place.command("dana", &["shell", "main"]));
    terminal.shows("work#");
    terminal.types(&format!("{}\r", place.tenacious()));
    place.until_they_run(3);
    assert!(place.dev.terminate(DEADLINE).success(), "{}", place.dev.stderr());
    assert_eq!(place.alive(), 0);
    terminal.ends();
}
