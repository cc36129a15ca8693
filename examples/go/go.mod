module longgen.example

go 1.19
