//! Inputs of fuzz targets, which ordinary tests run too.

use std::path::Path;

/// Feeds a target with each of its committed inputs.
pub fn feed_fuzz_inputs(target: &str, feed: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/inputs").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        // Seen where one panics.
        println!("{}", path.display());
        feed(&std::fs::read(path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "{} is empty", folder.display());
}
