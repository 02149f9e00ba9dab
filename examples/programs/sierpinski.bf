Sierpinski triangle

Prints Pascals triangle modulo 2: 32 rows in which an odd number is a star
The picture is that of the well known program by Daniel B Cristofani
This one was written for footbridge

>>++++++++[-<<++++>>>+++++>++++>+<<<]>++>>++  32 rows and the characters star and space and line feed
<<<++++++++++++++++++++++++++++++++           makes 32 columns of a marker and a value and a spare cell:
[->>>>>>>[>>>]+[<<<]<<<<]
>>>>>>>>+<<<<                                 the first value is 1
<<<<<<[                                       for every row
  -[->+>+<<]>>[-<<+>>]
  <[->>>.<<<]                                 prints the indent
  >>>>>>>>[                                   for every column
    >>++++++++++++++++++++++++++++++++<[->++++++++++<<+>]  the spare cell becomes a space or a star
    <-[->+<]+>>.                              prints it and gets the value back
  [-]++++++++++++++++++++++++++++++++.[-]<<>>>]  prints a space
  <<<[<<<]                                    back to the first column
  <.                                          ends the row
  >>>>[>>>]<<<[                               from the last column to the first:
    <<[->>>+>+<<<<]                           adds the value of the left neighbour
    >>>>[-<<<<+>>>>]                          which gets it back
    <[->+<]>[-<+>[-<->]]                      and 2 becomes 0
  <<<<<]
<<<<<<]
