//! From an order to services that answer: joins, epochs, environments, ports, secrets.
#![allow(clippy::disallowed_methods, reason = "the test binary runs itself as a child, told by its environment")]

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use envforge_domain::manifest::{Probe, Route, Service};
use envforge_domain::secret::Secret;
use envforge_domain::time::Millis;
use envforge_runtime::{Config, InvalidConfig, LocalHost, OpenError, Stage, WakeFailure};
use tokio::sync::watch;

use crate::fixture::*;

#[tokio::test]
async fn a_workspace_wakes_and_its_web_service_answers() {
    let (host, repository) = (Host::open().await, Repository::with(&[("index.html", "hello from the branch\n")]));
    let commit = repository.commit(&[("index.html", "the branch's tip\n")]);
    let (stages, watched) = watch::channel(Stage::CheckingOut);
    let order = order(&repository, [listening("web", WEB_SERVER, http("/"))]);
    assert!(!host.host.is_up(workspace(1), 1));
    let awake = host.host.wake(order, stages).await.unwrap();
    assert_eq!(awake.commit, commit);
    assert_eq!(*watched.borrow(), Stage::Ready);
    let [(service, address)] = awake.endpoints.as_slice() else { panic!("{awake:?}") };
    assert_eq!(*service, name("web"));
    assert!(address.ip().is_loopback());
    let (status, answer) = get(*address, "/").await;
    assert!(status == 200 && answer.ends_with("the branch's tip\n"), "{answer}");
    assert!(host.host.is_up(workspace(1), 1));
    assert!(!host.host.is_up(workspace(1), 2));
    host.host.shutdown().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stages_are_reported_while_a_wake_goes_on() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let gate = host.state.join("gate");
    let probe = Probe::Command { command: format!("test -e {}", gate.display()) };
    let slow = envforge_domain::manifest::Service { readiness: ready_by(probe), ..service("app", "sleep 1000") };
    let (stages, mut watched) = watch::channel(Stage::Ready);
    let waking = tokio::spawn({
        let (host, order) = (host.host.clone(), order(&repository, [slow]));
        async move { host.wake(order, stages).await }
    });
    watched.wait_for(|stage| *stage == Stage::CheckingOut).await.unwrap();
    watched.wait_for(|stage| *stage == Stage::Probing { service: name("app") }).await.unwrap();
    // Whoever joins sees where it stands.
    let (late_stages, mut late_watched) = watch::channel(Stage::CheckingOut);
    let joining = tokio::spawn({
        let (host, order) = (host.host.clone(), order(&repository, [service("app", "true")]));
        async move { host.wake(order, late_stages).await }
    });
    late_watched.wait_for(|stage| *stage == Stage::Probing { service: name("app") }).await.unwrap();
    fs::write(gate, "").unwrap();
    let first = waking.await.unwrap().unwrap();
    assert_eq!(joining.await.unwrap().unwrap(), first);
    host.host.shutdown().await;
}

#[tokio::test]
async fn twenty_wakes_of_one_epoch_start_the_service_once() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let command = "echo started >> \"$ENVFORGE_DATA_DIR/starts\"; exec sleep 1000";
    let order = order(&repository, [service("app", command)]);
    let wakes = (0..20).map(|_| host.wake(order.clone()));
    let results = futures_util::future::join_all(wakes).await;
    let first = results[0].clone().unwrap();
    assert!(results.iter().all(|result| result.as_ref() == Ok(&first)));
    assert_eq!(host.wake(order).await, Ok(first), "an epoch that is up answers at once");
    assert_eq!(host.written(workspace(1), "starts").await, "started");
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_end_the_wake() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let gate = host.state.join("gate");
    let probe = Probe::Command { command: format!("test -e {}", gate.display()) };
    let slow = envforge_domain::manifest::Service { readiness: ready_by(probe), ..service("app", "sleep 1000") };
    let (stages, mut watched) = watch::channel(Stage::Ready);
    let caller = tokio::spawn({
        let (host, order) = (host.host.clone(), order(&repository, [slow]));
        async move { host.wake(order, stages).await }
    });
    watched.wait_for(|stage| *stage == Stage::Probing { service: name("app") }).await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    fs::write(gate, "").unwrap();
    eventually("the wake ends without its caller", || host.host.is_up(workspace(1), 1)).await;
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_newer_epoch_ends_the_older_one_and_an_older_one_is_refused() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut order = order(&repository, [service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000")]);
    order.epoch = 4;
    host.wake(order.clone()).await.unwrap();
    let first = host.pid(workspace(1), "pid").await;
    fs::remove_file(host.data(workspace(1)).join("pid")).unwrap();
    order.epoch = 5;
    host.wake(order.clone()).await.unwrap();
    assert!(!is_alive(first) && is_alive(host.pid(workspace(1), "pid").await));
    order.epoch = 4;
    assert_eq!(host.wake(order.clone()).await, Err(WakeFailure::Stale { epoch: 4, current: 5 }));
    host.host.sleep(workspace(1), 4).await.unwrap();
    assert!(host.host.is_up(workspace(1), 5), "a late sleep of an older epoch changes nothing");
    host.host.shutdown().await;
}

#[tokio::test]
async fn an_epoch_that_slept_never_wakes_again_not_even_after_a_restart() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let order = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(order.clone()).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    host.host.sleep(workspace(1), 1).await.unwrap();
    let stale = Err(WakeFailure::Stale { epoch: 1, current: 1 });
    assert_eq!(host.wake(order.clone()).await, stale);
    host.host.shutdown().await;
    let Host { host: old, state, _directory } = host;
    drop(old);
    let reopened = reopen(&state).await;
    let answer = reopened.wake(order.clone(), watch::channel(Stage::Ready).0).await;
    assert_eq!(answer, stale);
    let next = envforge_runtime::WakeOrder { epoch: 2, ..order };
    reopened.wake(next, watch::channel(Stage::Ready).0).await.unwrap();
    reopened.shutdown().await;
}

#[tokio::test]
async fn an_epoch_that_ended_with_the_host_may_wake_again() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let order = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(order.clone()).await.unwrap();
    host.host.shutdown().await;
    assert_eq!(host.wake(order.clone()).await, Err(WakeFailure::ShuttingDown));
    let Host { host: old, state, _directory } = host;
    drop(old);
    let reopened = reopen(&state).await;
    reopened.wake(order, watch::channel(Stage::Ready).0).await.unwrap();
    reopened.shutdown().await;
}

/// The last actor lets go of the directory a moment after the last handle.
async fn reopen(state: &std::path::Path) -> LocalHost {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match LocalHost::open(config(state)).await {
            Ok((host, leftovers)) => {
                assert_eq!(leftovers, []);
                return host;
            }
            Err(OpenError::Held { .. }) if std::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn workspaces_wake_in_parallel_on_ports_of_their_own() {
    let (host, repository) = (Host::open().await, Repository::with(&[("index.html", "here\n")]));
    // Each waits for the other: were they woken one after the other, neither would ever be ready.
    let meeting = host.state.clone();
    let wakes = [(1u128, 2u128), (2, 1)].map(|(mine, other)| {
        let mut order = order(
            &repository,
            ["web", "api", "docs"].map(|service| {
                let command = format!(
                    "touch {0}/here-{mine}; exec python3 -m http.server --bind 127.0.0.1 $PORT",
                    meeting.display()
                );
                let meet = Probe::Command { command: format!("test -e {}/here-{other}", meeting.display()) };
                listening(service, &command, if service == "web" { meet } else { http("/") })
            }),
        );
        order.workspace = workspace(mine);
        host.wake(order)
    });
    let awake = futures_util::future::join_all(wakes).await;
    let ports: HashSet<_> =
        awake.iter().flat_map(|awake| &awake.as_ref().unwrap().endpoints).map(|(_, address)| address.port()).collect();
    assert_eq!(ports.len(), 6);
    host.host.sleep(workspace(1), 1).await.unwrap();
    let (_, other) = &awake[1].as_ref().unwrap().endpoints[1];
    assert_eq!(get(*other, "/").await.0, 200, "the other workspace stays awake");
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_service_sees_what_it_is_told_and_nothing_of_the_parent() {
    let parent: HashSet<String> = std::env::vars().map(|(name, _)| name).collect();
    assert!(parent.iter().any(|name| name.starts_with("CARGO")), "the test itself runs with variables that could leak");
    let host = Host::configured(|config| {
        config.service_environment = vec![("TZ".to_owned(), "Europe/Berlin".to_owned())];
        config.git_environment = vec![("GIT_CANARY".to_owned(), "for git alone".to_owned())];
    })
    .await;
    let repository = Repository::with(&[("web/x", "")]);
    let mut web = listening(
        "web",
        "env -0 > \"$ENVFORGE_DATA_DIR/env\"; pwd > \"$ENVFORGE_DATA_DIR/pwd\"; exec sleep 1000",
        Probe::None,
    );
    web.port_variable = Some("HTTP_PORT".to_owned());
    web.directory = Some("web".to_owned());
    web.environment = vec![
        ("GREETING".to_owned(), "hello $HOME".to_owned()),
        ("ENVFORGE_WORKSPACE".to_owned(), "forged".to_owned()),
        ("ENVFORGE_ANYTHING".to_owned(), "forged".to_owned()),
    ];
    web.secrets = vec!["DATABASE_URL".to_owned()];
    let mut other = listening("mail-box", "env -0 > \"$ENVFORGE_DATA_DIR/other\"; exec sleep 1000", Probe::None);
    other.environment = vec![("ONLY_THERE".to_owned(), "1".to_owned())];
    let mut order = order(&repository, [web, other]);
    order.public_hosts = BTreeMap::from([(name("web"), "web--ws--acme.dev.localhost:7080".to_owned())]);
    order.secrets = BTreeMap::from([
        ("DATABASE_URL".to_owned(), Secret::new("postgres://secret".to_owned())),
        ("UNDECLARED".to_owned(), Secret::new("never handed out".to_owned())),
    ]);
    let awake = host.wake(order).await.unwrap();
    host.written(workspace(1), "pwd").await;
    let read = |file: &str| -> BTreeMap<String, String> {
        let text = fs::read_to_string(host.data(workspace(1)).join(file)).unwrap_or_default();
        text.split_terminator('\0')
            .map(|line| line.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    };
    eventually("the other service wrote its environment", || read("other").len() > 10).await;
    let (seen, other) = (read("env"), read("other"));
    // PWD, OLDPWD, SHLVL and _ come from the shell itself.
    let names: Vec<&str> =
        seen.keys().map(String::as_str).filter(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_")).collect();
    assert_eq!(
        names,
        [
            "DATABASE_URL",
            "ENVFORGE_DATA_DIR",
            "ENVFORGE_PUBLIC_HOST",
            "ENVFORGE_RUNTIME",
            "ENVFORGE_SERVICE",
            "ENVFORGE_SERVICE_MAIL_BOX_HOST",
            "ENVFORGE_SERVICE_MAIL_BOX_PORT",
            "ENVFORGE_SERVICE_WEB_HOST",
            "ENVFORGE_SERVICE_WEB_PORT",
            "ENVFORGE_WORKSPACE",
            "GREETING",
            "HOME",
            "HOST",
            "HTTP_PORT",
            "LANG",
            "PATH",
            "TZ",
            "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS",
        ]
    );
    assert_eq!(seen["ENVFORGE_WORKSPACE"], workspace(1).to_string());
    assert_eq!(seen["ENVFORGE_PUBLIC_HOST"], "web--ws--acme.dev.localhost:7080");
    assert_eq!(seen["__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS"], "web--ws--acme.dev.localhost");
    assert_eq!(seen["GREETING"], "hello $HOME");
    assert_eq!(seen["DATABASE_URL"], "postgres://secret");
    assert_eq!(seen["HTTP_PORT"], awake.endpoints[0].1.port().to_string());
    assert_eq!(seen["ENVFORGE_SERVICE_MAIL_BOX_PORT"], awake.endpoints[1].1.port().to_string());
    assert!(seen["HOME"].starts_with(host.state.to_str().unwrap()));
    assert!(!other.contains_key("DATABASE_URL") && !other.contains_key("ENVFORGE_PUBLIC_HOST"));
    assert_eq!(other["ONLY_THERE"], "1");
    assert!(host.written(workspace(1), "pwd").await.ends_with("/checkout/web"));
    host.host.shutdown().await;
}

/// A machine has another address than loopback, at which the gateway reaches it and so does everybody else in its network.
#[tokio::test]
async fn what_no_link_reaches_listens_on_loopback_alone_and_its_siblings_are_told_where() {
    const SERVER: &str =
        "env -0 > \"$ENVFORGE_DATA_DIR/$ENVFORGE_SERVICE\"; exec python3 -m http.server --bind \"$HOST\" \"$PORT\"";
    let (host, repository) =
        (Host::configured(|config| config.bind = [127, 0, 0, 2].into()).await, Repository::with(&[]));
    let web = Service { route: Route::Web { websockets: Vec::new() }, ..listening("web", SERVER, http("/")) };
    let awake = host.wake(order(&repository, [web, listening("database", SERVER, Probe::Tcp)])).await.unwrap();
    let [(_, web), (_, database)] = awake.endpoints.as_slice() else { panic!("{awake:?}") };
    assert_eq!((web.ip().to_string(), database.ip().to_string()), ("127.0.0.2".to_owned(), "127.0.0.1".to_owned()));
    assert_eq!((get(*web, "/").await.0, get(*database, "/").await.0), (200, 200));
    let from_outside = std::net::TcpStream::connect((web.ip(), database.port()));
    assert_eq!(from_outside.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    for service in ["web", "database"] {
        let seen = fs::read_to_string(host.data(workspace(1)).join(service)).unwrap();
        let seen: BTreeMap<_, _> = seen.split('\0').filter_map(|line| line.split_once('=')).collect();
        for (sibling, address) in [("WEB", web), ("DATABASE", database)] {
            assert_eq!(seen[format!("ENVFORGE_SERVICE_{sibling}_HOST").as_str()], address.ip().to_string());
            assert_eq!(seen[format!("ENVFORGE_SERVICE_{sibling}_PORT").as_str()], address.port().to_string());
        }
        assert_eq!(seen["HOST"], if service == "web" { "127.0.0.2" } else { "127.0.0.1" });
    }
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_missing_secret_stops_the_wake_before_anything_starts() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut web = service("web", "touch \"$ENVFORGE_DATA_DIR/started\"; sleep 1000");
    web.secrets = vec!["DATABASE_URL".to_owned()];
    let failure = host.wake(order(&repository, [service("app", "sleep 1000"), web])).await.unwrap_err();
    assert_eq!(failure, WakeFailure::SecretMissing { service: name("web"), secret: "DATABASE_URL".to_owned() });
    assert!(!host.place(workspace(1)).exists(), "not even a checkout was made");
}

#[tokio::test]
async fn a_full_host_refuses_and_has_room_again_after_a_sleep() {
    let host = Host::configured(|config| config.runtimes_max = 1).await;
    let repository = Repository::with(&[]);
    let mut first = order(&repository, [service("app", "exec sleep 1000")]);
    host.wake(first.clone()).await.unwrap();
    first.workspace = workspace(2);
    let refused = host.wake(first.clone()).await.unwrap_err();
    assert_eq!(refused, WakeFailure::HostFull { max: 1 });
    assert!(refused.may_pass_on_retry());
    host.host.sleep(workspace(1), 1).await.unwrap();
    host.wake(first).await.unwrap();
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_directory_outside_the_branch_is_refused() {
    let (host, repository) = (Host::open().await, Repository::with(&[("file", "")]));
    std::os::unix::fs::symlink("/etc", repository.path().join("link")).unwrap();
    repository.commit(&[]);
    for directory in ["link", "missing", "file", ".."] {
        let mut app = service("app", "sleep 1000");
        app.directory = Some(directory.to_owned());
        let failure = host.wake(order(&repository, [app])).await.unwrap_err();
        assert_eq!(failure, WakeFailure::Directory { service: name("app"), directory: directory.to_owned() });
    }
}

#[tokio::test]
async fn a_wake_that_takes_too_long_fails_and_leaves_nothing() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut slow = service("app", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000");
    slow.readiness = ready_by(Probe::Command { command: "test -e never-there".to_owned() });
    let mut order = order(&repository, [slow]);
    order.deadline = Millis::from_secs(2);
    assert_eq!(host.wake(order).await, Err(WakeFailure::DeadlinePassed { limit: Millis::from_secs(2) }));
    assert!(!is_alive(host.pid(workspace(1), "pid").await));
    assert!(!host.record(workspace(1)).exists());
}

#[tokio::test]
async fn a_state_directory_has_one_holder_and_is_private() {
    let host = Host::open().await;
    assert!(matches!(LocalHost::open(config(&host.state)).await, Err(OpenError::Held { .. })));
    let repository = Repository::with(&[]);
    host.wake(order(&repository, [service("app", "exec sleep 1000")])).await.unwrap();
    let place = host.place(workspace(1));
    for directory in [&host.state, &place, &place.join("output"), &place.join("data"), &place.join("checkout")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700, "{}", directory.display());
    }
    assert_eq!(fs::metadata(host.record(workspace(1))).unwrap().permissions().mode() & 0o777, 0o600);
    host.host.shutdown().await;
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_by_name() {
    let refused = |change: fn(&mut Config)| {
        let mut config = Config::new("/nonexistent/envforge");
        change(&mut config);
        async move {
            match LocalHost::open(config).await {
                Err(OpenError::Config(invalid)) => invalid,
                other => panic!("{:?}", other.err()),
            }
        }
    };
    let relative = refused(|config| config.state_dir = "state".into()).await;
    assert!(matches!(relative, InvalidConfig::Range { setting: "state_dir", .. }));
    let reserved = refused(|config| config.service_environment = vec![("ENVFORGE_RUNTIME".into(), "x".into())]).await;
    assert!(matches!(reserved, InvalidConfig::ReservedVariable { setting: "service_environment", .. }));
    let odd = refused(|config| config.git_environment = vec![("A=B".into(), "x".into())]).await;
    assert!(matches!(odd, InvalidConfig::VariableName { setting: "git_environment", .. }));
    let reports = refused(|config| config.reports_max = 0).await;
    assert!(matches!(reports, InvalidConfig::Range { setting: "reports_max", .. }));
}
