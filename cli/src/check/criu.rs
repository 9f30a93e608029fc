//! CRIU by itself.

use podmotion_criu_driver::{Criu, LogLevel, Version};

use super::{Context, Verdict};

/// 4.1 cannot dump a TCP socket on Linux 6.17 and newer.
const OLDEST: Version = Version {
    major: 4,
    minor: 2,
    sublevel: 0,
};

const INSTALL: &str = "install CRIU 4.2 or newer and say where it is: criu.binary";

/// The configured CRIU.
pub fn configured(context: &Context<'_>) -> Result<Criu, Verdict> {
    let config = context.config()?;
    Ok(Criu::new(config.criu.binary.as_ref(), LogLevel::Warning))
}

/// It runs and is new enough.
pub fn version(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let criu = configured(context)?;
    let path = criu.binary().display();
    Ok(match criu.version() {
        Ok(found) if found >= OLDEST => Verdict::ok(format!("{found}, {path}")),
        Ok(found) => Verdict::failed(
            format!("{path} is {found}, and {OLDEST} is the oldest that works"),
            INSTALL,
        ),
        Err(error) => Verdict::failed(format!("{:#}", anyhow::Error::new(error)), INSTALL),
    })
}

/// What it finds in the kernel.
pub fn kernel(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let criu = configured(context)?;
    let failed = |error| {
        Verdict::failed(
            format!("{:#}", anyhow::Error::new(error)),
            "see `criu check`",
        )
    };
    criu.check().map_err(failed)?;
    let features = criu.features().map_err(failed)?;
    if !features.lazy_pages {
        return Ok(Verdict::warning(
            "no lazy pages: large containers wake only when all of their memory is back",
            "use a kernel with CONFIG_USERFAULTFD",
        ));
    }
    Ok(Verdict::ok("all that CRIU needs, and lazy pages"))
}
