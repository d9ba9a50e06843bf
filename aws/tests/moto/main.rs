//! Tests against moto.
#[test]
fn x() {}
