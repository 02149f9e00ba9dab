module footbridge/peer

go 1.19
