//! Projects and where their code is.

use envforge_domain::project::Repository;

#[test]
fn a_repository_holds_no_password_and_no_token() {
    for text in [
        "https://git.test/acme/orders",
        "https://git.test/acme/orders@v2",
        "ssh://git@git.test:22/acme/orders",
        "ssh://git.test/acme/orders",
        "git@git.test:acme/orders.git",
        "/srv/orders",
        "file:///srv/orders",
    ] {
        assert_eq!(Repository::parse(text).unwrap().as_str(), text);
    }
    for text in [
        "https://user:hunter2@git.test/p",
        "https://hunter2@git.test/p",
        "https://hunter2@git.test",
        "ssh://git:hunter2@git.test/p",
        "ssh://git:hunter2@git.test",
        "ssh://a:hunter2@b@git.test/p",
        "ssh://git:hunter2@git.test?p",
    ] {
        let error = Repository::parse(text).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    for text in ["http://git.test/p", "git.test/p", "ssh://git.test/with blank", ""] {
        assert!(Repository::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_path_of_the_machine_is_told_apart() {
    for text in ["/srv/orders", "file:///srv/orders"] {
        assert!(Repository::parse(text).unwrap().is_local(), "{text}");
    }
    for text in ["https://git.test/p", "ssh://git@git.test/srv", "git@git.test:/srv/orders"] {
        assert!(!Repository::parse(text).unwrap().is_local(), "{text}");
    }
}
