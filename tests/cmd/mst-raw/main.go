// SPDX-License-Identifier: Apache-2.0

// Command mst-raw sends frames that no socket would: it passes the hooks of sockets and, with PACKET_QDISC_BYPASS, the
// egress of its own device, which takes CAP_NET_RAW alone.
//
//	mst-raw udp,src=10.0.0.9,dst=10.201.0.3,dport=53    a datagram from an address that is not ours
//	mst-raw -n 100000 tcp,dst=…,flags=S,sport=random    a flood
//	mst-raw catch 2s                                    prints what arrives, a line for each frame
//
// Each argument is a frame: KIND,KEY=VALUE,… Keys: to, from (MACs), src, dst, sport, dport, flags, text, target, about, part (first, later, tiny, overlap), options,
// length, tag, ttl. It prints how many frames were sent.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	log.SetFlags(0)
	device := flag.String("i", "eth0", "the `DEVICE` to send by")
	count := flag.Int("n", 1, "how often to send each frame")
	qdisc := flag.Bool("qdisc", false, "go by the device's egress, as other packets do")
	mark := flag.Int("mark", 0, "the `MARK` of the frames, which takes CAP_NET_ADMIN")
	flag.Parse()
	if err := run(*device, *count, *qdisc, *mark, flag.Args()); err != nil {
		log.Fatalf("mst-raw: %v", err)
	}
}

func run(device string, count int, qdisc bool, mark int, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: mst-raw [flags] KIND,KEY=VALUE,…… | catch TIME")
	}
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	if args[0] == "catch" {
		return catch(fd, dev, args[1:])
	}
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return fmt.Errorf("mark: %w", err)
		}
	}
	if !qdisc {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
			return fmt.Errorf("pass the egress by: %w", err)
		}
	}
	total := 0
	for _, arg := range args {
		sent, err := send(fd, dev, count, strings.Split(arg, ","))
		if err != nil {
			return err
		}
		total += sent
	}
	fmt.Println(total)
	return nil
}

// send sends a frame as often as is asked for, and returns how often it could.
func send(fd int, dev *net.Interface, count int, words []string) (sent int, err error) {
	random := map[string]bool{}
	f, err := parse(dev, words, random)
	if err != nil {
		return 0, err
	}
	for range count {
		if random["sport"] {
			f.sport = uint16(1024 + rand.IntN(60000))
		}
		if random["dport"] {
			f.dport = uint16(1 + rand.IntN(65000))
		}
		b, err := f.bytes()
		if err != nil {
			return sent, err
		}
		err = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index, Halen: 6, Addr: [8]byte(append(slices.Clone(f.to), 0, 0))})
		switch {
		case err == nil:
			sent++
		case !errors.Is(err, unix.ENOBUFS): // a flood may be too fast
			return sent, fmt.Errorf("send: %w", err)
		}
	}
	return sent, nil
}

// parse reads KIND and its keys; what is not said is as the container's own.
func parse(dev *net.Interface, args []string, random map[string]bool) (frame, error) {
	f := frame{kind: args[0], to: net.HardwareAddr{255, 255, 255, 255, 255, 255}, from: dev.HardwareAddr, sport: 5000, ttl: 64, text: "0123456789abcdef0123456789abcdef"}
	if f.kind == "na" || f.kind == "ra" || f.kind == "redirect" {
		f.ttl = 255
	}
	for _, arg := range args[1:] {
		key, value, _ := strings.Cut(arg, "=")
		var err error
		switch key {
		case "to":
			f.to, err = net.ParseMAC(value)
		case "from":
			f.from, err = net.ParseMAC(value)
		case "src":
			f.src, err = netip.ParseAddr(value)
		case "dst":
			f.dst, err = netip.ParseAddr(value)
		case "target":
			f.target, err = netip.ParseAddr(value)
		case "sport":
			f.sport, err = port(key, value, random)
		case "dport":
			f.dport, err = port(key, value, random)
		case "flags":
			f.flags = value
		case "text":
			f.text = value
		case "about":
			f.about = value
		case "part":
			f.part = value
		case "options":
			f.options = true
		case "length":
			f.length, err = strconv.Atoi(value)
		case "tag":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 16)
			f.tag = uint16(n)
		case "ttl":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 8)
			f.ttl = uint8(n)
		default:
			err = errors.New("no such key")
		}
		if err != nil {
			return f, fmt.Errorf("%s: %w", arg, err)
		}
	}
	if !f.src.IsValid() {
		var err error
		if f.src, err = own(dev, f.dst.Is6()); err != nil {
			return f, err
		}
	}
	return f, nil
}

func port(key, value string, random map[string]bool) (uint16, error) {
	if value == "random" {
		random[key] = true
		return 0, nil
	}
	n, err := strconv.ParseUint(value, 10, 16)
	return uint16(n), err
}

// own is the device's address of a family.
func own(dev *net.Interface, v6 bool) (netip.Addr, error) {
	addrs, err := dev.Addrs()
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() == v6 && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, errors.Join(err, fmt.Errorf("%s has no address to send from: give src", dev.Name))
}

// catch prints what arrives.
func catch(fd int, dev *net.Interface, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: mst-raw catch TIME")
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	all := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: all}); err != nil {
		return err
	}
	fmt.Println("catching")
	b := make([]byte, 65536)
	for end := time.Now().Add(limit); ; {
		left := unix.NsecToTimeval(int64(max(time.Until(end), time.Microsecond)))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left); err != nil {
			return err
		}
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok && at.Pkttype != unix.PACKET_OUTGOING {
			fmt.Fprintln(os.Stdout, describe(b[:n]))
		}
	}
}

// describe is a frame in a line: its type, source, destination and what it carries.
func describe(b []byte) string {
	if len(b) < 14 {
		return "short"
	}
	p := b[14:]
	switch t := int(b[12])<<8 | int(b[13]); {
	case t == etherIP && len(p) >= 20:
		return fmt.Sprintf("ip %s > %s proto %d %q", netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:])), p[9], p[20:])
	case t == etherIP6 && len(p) >= 40:
		return fmt.Sprintf("ip6 %s > %s proto %d %q", netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:])), p[6], p[40:])
	default:
		return fmt.Sprintf("type %#04x %q", t, p)
	}
}
