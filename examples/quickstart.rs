fn main() {
    println!("{}", footbridge::environment());
    let r = footbridge::runtime::run(|| footbridge::runtime::go(|| 5).join().unwrap());
    println!("{r}");
}
