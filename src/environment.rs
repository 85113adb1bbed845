//! The environment that LibTorch's threads need.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// How OpenMP's threads wait, and for how many turns they spin before they sleep; read once, when
/// LibTorch is loaded.
const WAITING: [(&str, &str); 2] = [("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "1000")];

/// Starts the program again with threads that soon sleep while they wait, unless the user said how.
///
/// By default OpenMP's threads spin for long, which is only good as long as nobody else wants a
/// core: with one other busy process on two cores, training became nine times slower; asleep, two
/// times. A short spin costs nothing then, and alone it saves a tenth of the time that waking up
/// takes. Returns if nothing is to be done, or if the program cannot be started again.
pub fn let_threads_sleep() {
    if std::env::var_os(WAITING[0].0).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut again = Command::new(program);
        again.args(std::env::args_os().skip(1)).envs(WAITING);
        // Only returns if it fails; then this process goes on as it is.
        let error = again.exec();
        eprintln!("note: OpenMP's threads will spin ({error})");
    }
}
