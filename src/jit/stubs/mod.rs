//! What each kind of stub consists of.

pub(crate) mod adapter;

crate::on_executing_host! {
    pub(crate) mod enter;
    mod env;
    pub(crate) mod goroutine_fn;
    pub(crate) mod poll;
    pub(crate) mod preempt;
    mod shapes;
    pub(crate) mod spawn;
    pub(crate) mod stack_check;
    pub(crate) mod switch;

    pub(crate) use env::{ANCHOR_PC, StubEnv};
    use shapes::Shapes;
}
