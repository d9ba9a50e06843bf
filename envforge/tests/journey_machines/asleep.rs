//! Logs and shells while the runtime sleeps and its machine is off, where shells have no machine of their own: the machine is started for
//! them, outside the meter, and stops again.

use envforge_domain::machine::MachineCause::{Logs, Shell};
use envforge_testkit::{TestProcess, wait_until};

use crate::site::DEADLINE;
use crate::{World, until_state};

const STARTING: &str = "The machine of this workspace's host is starting; this may take a few minutes.\n";

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_shells_start_the_machine_on_which_they_lie_and_it_stops_again() {
    let Some(world) = World::up_with("none").await else { return };
    // Which its service writes down.
    world.goes_on().await;
    world.sleeps().await;
    let (site, cloud, log, dana, instance) = (&world.site, &world.cloud, &world.log, &world.dana, &world.instance);
    let until_off = async || {
        until_state(cloud, instance, "stopped").await;
        wait_until("its end", DEADLINE, || cloud.is_off(instance));
    };
    until_off().await;
    let metered = || site.json(&["usage"])["items"].clone();
    let before = metered();

    // Some at once.
    let ask = || {
        let dana = dana.clone();
        tokio::task::spawn_blocking(move || dana.does(&["logs", "main", "web"], ""))
    };
    for asked in [ask(), ask(), ask()] {
        let told = asked.await.unwrap();
        assert!(told.status.success() && String::from_utf8_lossy(&told.stdout).contains("GET /starts"), "{told:?}");
    }
    assert_eq!((log.starts_of(&world.host).await, cloud.boots(instance)), (vec![Logs], 2));
    until_off().await;
    site.until_phase("asleep").await;
    assert_eq!(metered(), before);

    // Somebody follows, beside whom a shell is opened; what the next wake writes there is seen.
    let follow = site.command_of("dana", &["logs", "main", "web", "--follow"]);
    let mut follower = TestProcess::spawn("follower", &follow, site.dir.path());
    let seen = |follower: &TestProcess| follower.stdout().matches("GET /starts").count();
    wait_until("the last lines", DEADLINE, || seen(&follower) > 0);
    assert_eq!(dana.shell("echo kept > kept; ls; echo to-err >&2; exit 7", ""), "envforge.yml\nkept\n");
    assert_eq!(metered(), before);
    let lines = seen(&follower);
    assert_eq!(site.app_through_the_gateway().await.lines().count(), 2, "the disk is the same");
    wait_until("the next line", DEADLINE, || seen(&follower) > lines);
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    site.until_metered().await;
    let before = metered();
    follower.kill9();
    until_off().await;
    assert_eq!((log.starts_of(&world.host).await, cloud.boots(instance)), (vec![Logs, Logs], 3));

    // A shell starts it, too, and whoever opens it is told.
    let opened = dana.does(&["shell", "main", "--", "cat", "kept"], "");
    let [out, err] = [&opened.stdout, &opened.stderr].map(|stream| String::from_utf8_lossy(stream));
    assert_eq!((&*out, &*err), ("kept\n", STARTING), "the clone is where it was");
    assert_eq!(log.starts_of(&world.host).await, [Logs, Logs, Shell]);
    assert_eq!(metered(), before);
    until_off().await;
    world.ends();
}
