//! Real containers, real CRIU: needs root, runc and what `cargo xtask setup` brings.

mod cases;
mod container;
mod killed;
mod reaped;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let mut arguments = Arguments::from_args();
    // Tests count descriptors and kill every CRIU of this process: one at a time.
    arguments.test_threads.get_or_insert(1);
    let skip = std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1");
    let root = rustix::process::geteuid().is_root();
    let trials = cases::all()
        .into_iter()
        .map(|(name, case)| {
            let run = move || {
                if !root {
                    return Err(Failed::from("needs root"));
                }
                case();
                Ok(())
            };
            // Times are asked for by name: `--ignored speed`.
            let measures = name == "speed";
            Trial::test(name, run).with_ignored_flag(measures || (skip && !root))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
