//! Real processes, stopped and let go: needs root, for seccomp and the freezer.

mod calls;
mod freezer;
mod stops;
mod victim;

use libtest_mimic::{Arguments, Failed, Trial};

type Case = (&'static str, fn());

fn main() {
    let mut arguments = Arguments::from_args();
    // Some measure times, and each waits for children of its own only.
    arguments.test_threads.get_or_insert(1);
    let skip = std::env::var_os("PODMOTION_SKIP_ROOT").is_some_and(|value| value == "1");
    let root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let cases = stops::CASES
        .iter()
        .chain(calls::CASES)
        .chain(freezer::CASES);
    let trials = cases
        .map(|&(name, case)| {
            let run = move || {
                if !root {
                    return Err(Failed::from("needs root"));
                }
                case();
                Ok(())
            };
            Trial::test(format!("inject::{name}"), run).with_ignored_flag(skip && !root)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
