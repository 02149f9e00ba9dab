Rot13

Copies its input and moves every ASCII letter 13 places in the alphabet
Ends at the end of input or at a zero byte
Written for footbridge

How: the byte is counted down in a copy inside of one bracket per step so that
the code at depth n runs if the byte is n or more
Six depths change the result: plus 13 at A and a / minus 26 at N and n /
plus 13 behind Z and z
Every bracket is left at once when the count is zero

,[                                            for every byte x until a zero byte or the end of input
  [->+>+<<]>>[-<<+>>]                         y is a copy of x
  <<[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-
  [-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-[-
  >+++++++++++++<                             reached by A and above
  [-[-[-[-[-[-[-[-[-[-[-[-[-
  >--------------------------<                reached by N and above
  [-[-[-[-[-[-[-[-[-[-[-[-[-
  >+++++++++++++<                             reached by past Z and above
  [-[-[-[-[-[-
  >+++++++++++++<                             reached by a and above
  [-[-[-[-[-[-[-[-[-[-[-[-[-
  >--------------------------<                reached by n and above
  [-[-[-[-[-[-[-[-[-[-[-[-[-
  >+++++++++++++<                             reached by past z and above
  [-]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
  ]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]
  >.[-]<                                      prints y
,]
