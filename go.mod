module github.com/seed22e817d0/sse

go 1.25
