// Package util has an empty name.
package util // want name

// want-file long
const (
	a = iota
	b
	c
	d
	e
	f
	g
	h
	i
	j
	k
	l
	m
	n
	o
	p
	q
	r
	s
	u
	v
	w
	x
	y
	z
	aa
	bb
	cc
	dd
	ee
	ff
	gg
	hh
	ii
	jj
	kk
	ll
	mm
	nn
	oo
	pp
	qq
	rr
	ss
	uu
)
