//! Pure rules of Podmotion: lifecycle, configuration, idle policy, checkpoint manifest.
