//! ttrpc services of Podmotion.
