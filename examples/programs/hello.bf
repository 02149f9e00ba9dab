Hello

Prints a greeting and a line feed
Written for footbridge

++++++++[->++++++++>++++++++++++++>++++>+<<<<]  sets four cells to 64 112 32 and 8
>++++++++.                                    H
>-----------.                                 e
+++++++.                                      l
.                                             l
+++.                                          o
>++++++++++++.                                comma
------------.                                 space
<--------.                                    g
++++++++.                                     o
+++.                                          r
---.                                          o
++++++.                                       u
-.                                            t
-----------.                                  i
+++++.                                        n
---------.                                    e
++++++++++++++.                               s
>+.                                           exclamation mark
>++.                                          line feed
