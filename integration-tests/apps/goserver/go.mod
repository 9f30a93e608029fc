module podmotion.test/goserver

go 1.24
