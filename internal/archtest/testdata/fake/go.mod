module fake.example/m

go 1.26
