//! The OpenID provider of tests: it does what it is taken for.

use envforge_testkit::OidcProvider;

#[test]
fn two_run_side_by_side_count_what_they_are_asked_and_sign_what_they_are_told() {
    let (one, two) = (OidcProvider::start(), OidcProvider::start());
    assert_ne!(one.issuer(), two.issuer());
    assert!(one.issuer().ends_with('/'), "as Auth0 writes it");
    assert_eq!(one.count("/authorize"), 0);
    assert_eq!(one.sign("{}", r#"{"sub":"x"}"#).split('.').count(), 3);
    one.rotate(false);
    one.rotate(true);
    assert!(one.sign("{}", "{}") != two.sign("{}", "{}"), "one has another key by now");
}

#[test]
fn it_comes_back_on_its_port() {
    let mut provider = OidcProvider::start();
    let issuer = provider.issuer();
    provider.kill9();
    provider.restart();
    assert_eq!(provider.issuer(), issuer);
    provider.pull("counts", "{}");
}
