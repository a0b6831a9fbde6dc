// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// frame is what a command line asks for.
type frame struct {
	to, from     net.HardwareAddr
	kind         string // udp, tcp, echo, error, arp, na, ra, redirect, or a number of an IP protocol
	src, dst     netip.Addr
	sport, dport uint16
	flags        string // of TCP: letters of SFRPA
	text         string
	target       netip.Addr // of neighbour discovery and redirects
	about        string     // of an error: SRC:PORT>DST:PORT of a datagram
	part         string     // first, later, tiny or overlap
	options      bool
	length       int // that the IP header claims; 0 for the truth
	tag          uint16
	ttl          uint8
}

const (
	protoICMP, protoTCP, protoUDP, protoICMP6 = 1, 6, 17, 58
	etherIP, etherARP, etherTag, etherIP6     = 0x0800, 0x0806, 0x8100, 0x86dd
)

func (f frame) v6() bool { return f.src.Is6() }

// bytes is the frame on the wire.
func (f frame) bytes() ([]byte, error) {
	head := slices.Concat(f.to, f.from)
	if f.tag != 0 {
		head = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(head, etherTag), f.tag)
	}
	if f.kind == "arp" {
		out := append(binary.BigEndian.AppendUint16(head, etherARP), 0, 1, 8, 0, 6, 4, 0, 2) // an answer that nobody asked for
		return slices.Concat(out, f.from, f.src.AsSlice(), f.to, f.target.AsSlice(), make([]byte, 18)), nil
	}
	proto, body, err := f.body()
	if err != nil {
		return nil, err
	}
	if f.v6() {
		return append(binary.BigEndian.AppendUint16(head, etherIP6), f.packet6(proto, body)...), nil
	}
	return append(binary.BigEndian.AppendUint16(head, etherIP), f.packet4(proto, body)...), nil
}

func (f frame) body() (proto uint8, body []byte, err error) {
	icmp := uint8(protoICMP)
	if f.v6() {
		icmp = protoICMP6
	}
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, f.sport), f.dport)
	sum := 2
	switch f.kind {
	case "udp":
		body = append(binary.BigEndian.AppendUint16(ports, uint16(8+len(f.text))), 0, 0)
		proto, body, sum = protoUDP, append(body, f.text...), 6
	case "tcp":
		flags := byte(0)
		for i, letter := range "FSRPA" {
			if strings.ContainsRune(f.flags, letter) {
				flags |= 1 << i
			}
		}
		body = append(ports, 0, 0, 0, 1, 0, 0, 0, 1, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
		proto, body, sum = protoTCP, append(body, f.text...), 16
	case "echo":
		proto, body = icmp, append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, f.text...)
		if f.v6() {
			body[0] = 128
		}
	case "error":
		proto = icmp
		body, err = f.err()
	case "na":
		proto, body = icmp, slices.Concat([]byte{136, 0, 0, 0, 0xe0, 0, 0, 0}, f.target.AsSlice(), []byte{2, 1}, f.from)
	case "ra":
		proto, body = icmp, slices.Concat([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, []byte{1, 1}, f.from)
	case "redirect":
		proto, body = icmp, slices.Concat([]byte{5, 1, 0, 0}, f.src.AsSlice(), make([]byte, 28))
		if f.v6() {
			body = slices.Concat([]byte{137, 0, 0, 0, 0, 0, 0, 0}, f.src.AsSlice(), f.target.AsSlice())
		}
	default:
		n, err := strconv.ParseUint(f.kind, 10, 8)
		return uint8(n), []byte(f.text), err
	}
	if err == nil {
		var covered []byte
		if proto != protoICMP {
			covered = slices.Concat(f.src.AsSlice(), f.dst.AsSlice(), []byte{0, 0, byte(len(body) >> 8), byte(len(body)), 0, 0, 0, proto})
		}
		binary.BigEndian.PutUint16(body[sum:], checksum(append(covered, body...)))
	}
	return proto, body, err
}

// err tells that a datagram did not arrive.
func (f frame) err() ([]byte, error) {
	var ends [2]netip.AddrPort
	for i, text := range strings.SplitN(f.about, ">", 2) {
		var err error
		if ends[i], err = netip.ParseAddrPort(text); err != nil {
			return nil, fmt.Errorf("about=%s: want SRC:PORT>DST:PORT: %w", f.about, err)
		}
	}
	q := frame{kind: "udp", src: ends[0].Addr(), dst: ends[1].Addr(), sport: ends[0].Port(), dport: ends[1].Port(), ttl: 64}
	proto, body, err := q.body()
	if err != nil {
		return nil, err
	}
	if f.v6() {
		return append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, q.packet6(proto, body)...), nil
	}
	return append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, q.packet4(proto, body)...), nil
}

// fragment gives what is left of the body, and the offset in bytes with more telling whether others follow.
func (f frame) fragment(body []byte) (rest []byte, offset int, more bool) {
	switch f.part {
	case "first":
		return body[:8], 0, true
	case "later":
		return body[8:], 8, false
	case "tiny": // without a whole header of TCP
		return body[:8], 0, true
	case "overlap": // over the ports that the head has had
		return body, 1 * 8, true
	}
	return body, 0, false
}

func (f frame) packet4(proto uint8, body []byte) []byte {
	body, offset, more := f.fragment(body)
	h := make([]byte, 20)
	if f.options {
		h = append(h, 7, 7, 4, 0, 0, 0, 0, 0) // record route
	}
	h[0], h[8], h[9] = 0x40|byte(len(h)/4), f.ttl, proto
	length := len(h) + len(body)
	if f.length != 0 {
		length = f.length
	}
	binary.BigEndian.PutUint16(h[2:], uint16(length))
	binary.BigEndian.PutUint16(h[4:], 0x6d73)
	if more {
		offset |= 0x2000 << 3
	}
	binary.BigEndian.PutUint16(h[6:], uint16(offset>>3))
	copy(h[12:], f.src.AsSlice())
	copy(h[16:], f.dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, body...)
}

func (f frame) packet6(proto uint8, body []byte) []byte {
	body, offset, more := f.fragment(body)
	if f.part != "" {
		head := []byte{proto, 0, byte(offset >> 8), byte(offset), 0, 0, 0x6d, 0x73}
		if more {
			head[3] |= 1
		}
		body, proto = append(head, body...), 44
	}
	if f.options { // more headers than anybody looks through
		for range 9 {
			body, proto = append([]byte{proto, 0, 1, 4, 0, 0, 0, 0}, body...), 60
		}
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, f.ttl
	length := len(body)
	if f.length != 0 {
		length = f.length
	}
	binary.BigEndian.PutUint16(h[4:], uint16(length))
	copy(h[8:], f.src.AsSlice())
	copy(h[24:], f.dst.AsSlice())
	return append(h, body...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
