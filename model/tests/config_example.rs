//! The example at the top of the project is what the model says. `UPDATE=1` rewrites it.

use std::path::Path;

use podmotion_model::config::NodeConfig;

#[test]
fn the_example_file_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config.toml.example");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, NodeConfig::example()).expect("write config.toml.example");
    }
    let found = std::fs::read_to_string(&path).expect("read config.toml.example");
    assert_eq!(
        found,
        NodeConfig::example(),
        "config.toml.example is not current: run `UPDATE=1 cargo test -p podmotion-model`"
    );
}
