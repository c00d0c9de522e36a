//! The last of the benchmarks, by its name: one table of the ratios that the others have found, each when it
//! ran last on this machine.

mod ratio;

fn main() {
    let all = ratio::all();
    if all.is_empty() {
        println!("no ratios yet: cargo bench");
        return;
    }
    println!("{}", ratio::head());
    for (bench, ratios) in all {
        println!("{bench}");
        for ratio in ratios {
            println!("  {}", ratio.line());
        }
    }
}
