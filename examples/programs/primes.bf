Primes

Prints the primes below 256 in decimal and one on each line
A long runner: every number is divided by every smaller one
Written for footbridge with the division idiom of the esolangs wiki

>>>>>>>>>>>>++++++++++                        line feed
>>>++++++++++>>>>++++++++++>>>>++++++++++     every digit has its distance to 10 beside it

<<<<<<<<<+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]     digit 0 plus 1 and if that makes 10
  >[-<<<[-]>++++++++++>>>+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]  digit 1 plus 1 and if that makes 10
    >[-<<<[-]>++++++++++>>>+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]  digit 2 plus 1 and if that makes 10
      >[-<<<[-]>++++++++++
    >>]
  <<<<]
<<<<]
<<<<<<<<<<<<<<<<+                             n is 1 and the decimal counter too
<--                                           254 rounds
[
  ->+>>>>>>>>>>>>>+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]  digit 0 plus 1 and if that makes 10
    >[-<<<[-]>++++++++++>>>+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]  digit 1 plus 1 and if that makes 10
      >[-<<<[-]>++++++++++>>>+>-[->+>+<<]>>[-<<+>>]+<[>-<[-]]  digit 2 plus 1 and if that makes 10
        >[-<<<[-]>++++++++++
      >>]
    <<<<]
  <<<<]
the next number
  <<<<<<<[-]+                                 it is prime until a divisor is found
  <<<<<<<<<[->+>>>>>>>>>+<<<<<<<<<<]>>>>>>>>>>[-<<<<<<<<<<+>>>>>>>>>>]<<<<
  <<<<<-                                      for every divisor d from n minus 1 down to 2:
  -[+
    <[->>+>>>>>>>>+<<<<<<<<<<]>>>>>>>>>>[-<<<<<<<<<<+>>>>>>>>>>]<<<<<<<<<[->
    >+>>>>>>>+<<<<<<<<<]>>>>>>>>>[-<<<<<<<<<+>>>>>>>>>]  divides a copy
    <<<<<<<<[->-[>+>>]>[+[-<+>]>+>>]<<<<<]    leaves 0 / d minus remainder / remainder / quotient
    >[-]>>[-]
    >+<<[>>-<<[-]]                            if the remainder is 0
    >>[->>>[-]<<<]                            then n is not prime
  <<<<<--]
  >>>>>>>>[-                                  prints a prime
    >>>>>>>>>>>>[->>+>+<<<]>>>[-<<<+>>>]<[<<<<<<<<<<<[-]+>>>>>>>>>>>[-]]<<<<
    <<<<<<<[->>>>>>>>>>>+>+<<<<<<<<<<<<]>>>>>>>>>>>>[-<<<<<<<<<<<<+>>>>>>>>>
    >>>]<[-<<++++++++++++++++++++++++++++++++++++++++++++++++.--------------
    ---------------------------------->>]     prints digit 2 if it or one before it is not 0
    <<<<<<[->>+>+<<<]>>>[-<<<+>>>]<[<<<<<<<[-]+>>>>>>>[-]]<<<<<<<[->>>>>>>+>
    +<<<<<<<<]>>>>>>>>[-<<<<<<<<+>>>>>>>>]<[-<<+++++++++++++++++++++++++++++
    +++++++++++++++++++.------------------------------------------------>>]  prints digit 1 if it or one before it is not 0
    <<<<<<++++++++++++++++++++++++++++++++++++++++++++++++.-----------------
    -------------------------------           prints digit 0
    <[-]
  <.<<]
<<<<<<<<<<]
