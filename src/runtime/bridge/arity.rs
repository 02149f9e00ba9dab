//! What is written once for every number of arguments.

/// Calls `$each!` with the type parameters and argument names of every arity up to 12.
macro_rules! for_each_arity {
    ($each:ident) => {
        $each!();
        $each!(A a);
        $each!(A a, B b);
        $each!(A a, B b, C c);
        $each!(A a, B b, C c, D d);
        $each!(A a, B b, C c, D d, E e);
        $each!(A a, B b, C c, D d, E e, F f);
        $each!(A a, B b, C c, D d, E e, F f, G g);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k);
        $each!(A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k, L l);
    };
}
pub(crate) use for_each_arity;
