// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"bytes"
	"fmt"

	"golang.org/x/sys/unix"
)

// Messages about flows (nfnetlink_conntrack.h).
const (
	ctNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
)

// call is a system call that mustang makes.
type call struct {
	name string
	kind uint32
}

// changing are those that change something which outlives the process, or may. A write into a file or a socket is none: what there is to lose of it
// is seen when the process is killed as it opens the file. Synchronising it is none either: only the host's own end loses what was written.
var changing = map[uint32]call{
	unix.SYS_BPF:       {"bpf", command},
	unix.SYS_SENDTO:    {"netlink", send},
	unix.SYS_SENDMSG:   {"netlink", sendmsg},
	unix.SYS_IOCTL:     {"ioctl", control},
	unix.SYS_BIND:      {"bind", bind},
	unix.SYS_OPENAT:    {"open", open},
	unix.SYS_PWRITE64:  {"write", always}, // of a page of the state
	unix.SYS_FTRUNCATE: {"truncate", always},
	unix.SYS_FALLOCATE: {"allocate", always},
	unix.SYS_MKDIR:     {"mkdir", path0},
	unix.SYS_MKDIRAT:   {"mkdir", path1},
	unix.SYS_MKNODAT:   {"mknod", path1},
	unix.SYS_RENAME:    {"rename", path0},
	unix.SYS_RENAMEAT:  {"rename", path1},
	unix.SYS_RENAMEAT2: {"rename", path1},
	unix.SYS_UNLINK:    {"unlink", path0},
	unix.SYS_UNLINKAT:  {"unlink", path1},
	unix.SYS_RMDIR:     {"rmdir", path0},
	unix.SYS_LINKAT:    {"link", path1},
	unix.SYS_SYMLINKAT: {"symlink", path0},
	unix.SYS_FCHMOD:    {"chmod", always},
	unix.SYS_CHMOD:     {"chmod", path0},
	unix.SYS_FCHMODAT:  {"chmod", path1},
	unix.SYS_FCHOWNAT:  {"chown", path1},
	unix.SYS_MOUNT:     {"mount", path1},
	unix.SYS_UMOUNT2:   {"umount", path0},
	unix.SYS_KILL:      {"kill", always},
}

// reading are those that change nothing, or nothing that outlives the process.
var reading = []uint32{
	// files and sockets
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX,
	unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_LSEEK, unix.SYS_FCNTL, unix.SYS_FLOCK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FADVISE64, unix.SYS_GETDENTS64,
	unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_GETCWD, unix.SYS_PIPE2, unix.SYS_SPLICE, unix.SYS_SENDFILE, unix.SYS_COPY_FILE_RANGE,
	unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_LISTEN, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT,
	unix.SYS_GETSOCKOPT, unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_SENDMMSG, unix.SYS_PPOLL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH, unix.SYS_INOTIFY_RM_WATCH,
	// threads: a network namespace is one's own until it is mounted
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_EXECVE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_TGKILL,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_RSEQ,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_SETITIMER,
	unix.SYS_PRCTL, unix.SYS_ARCH_PRCTL, unix.SYS_PRLIMIT64, unix.SYS_DUP, unix.SYS_DUP2, unix.SYS_DUP3, unix.SYS_CHDIR, unix.SYS_UMASK,
	// memory
	unix.SYS_BRK, unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MEMBARRIER, unix.SYS_MLOCK, unix.SYS_MSYNC,
	// questions
	unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETTID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_CAPGET, unix.SYS_UNAME, unix.SYS_SYSINFO,
	unix.SYS_GETRANDOM, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRUSAGE,
}

// bpfChanges are the commands of bpf(2) that change something; those of bpfReads do not, or nothing that outlives the process. One that is
// in neither counts as a change.
var (
	bpfChanges = map[uint64]string{
		unix.BPF_MAP_UPDATE_ELEM:             "MAP_UPDATE_ELEM",
		unix.BPF_MAP_DELETE_ELEM:             "MAP_DELETE_ELEM",
		unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM:  "MAP_LOOKUP_AND_DELETE_ELEM",
		unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH: "MAP_LOOKUP_AND_DELETE_BATCH",
		unix.BPF_MAP_UPDATE_BATCH:            "MAP_UPDATE_BATCH",
		unix.BPF_MAP_DELETE_BATCH:            "MAP_DELETE_BATCH",
		unix.BPF_OBJ_PIN:                     "OBJ_PIN",
		unix.BPF_PROG_ATTACH:                 "PROG_ATTACH",
		unix.BPF_PROG_DETACH:                 "PROG_DETACH",
		unix.BPF_LINK_CREATE:                 "LINK_CREATE",
		unix.BPF_LINK_UPDATE:                 "LINK_UPDATE",
		unix.BPF_LINK_DETACH:                 "LINK_DETACH",
	}
	bpfReads = []uint64{
		unix.BPF_MAP_CREATE, unix.BPF_MAP_FREEZE, unix.BPF_PROG_LOAD, unix.BPF_BTF_LOAD, // until they are pinned or attached, they end with the process
		unix.BPF_MAP_LOOKUP_ELEM, unix.BPF_MAP_GET_NEXT_KEY, unix.BPF_MAP_LOOKUP_BATCH, unix.BPF_OBJ_GET, unix.BPF_PROG_TEST_RUN,
		unix.BPF_PROG_GET_NEXT_ID, unix.BPF_MAP_GET_NEXT_ID, unix.BPF_BTF_GET_NEXT_ID, unix.BPF_LINK_GET_NEXT_ID,
		unix.BPF_PROG_GET_FD_BY_ID, unix.BPF_MAP_GET_FD_BY_ID, unix.BPF_BTF_GET_FD_BY_ID, unix.BPF_LINK_GET_FD_BY_ID,
		unix.BPF_OBJ_GET_INFO_BY_FD, unix.BPF_PROG_QUERY, unix.BPF_TASK_FD_QUERY, bpfTokenCreate,
	}
)

// bpfTokenCreate is BPF_TOKEN_CREATE (bpf.h).
const bpfTokenCreate = 36

// readingCommands is a bit for each of bpfReads.
func readingCommands() (mask uint64) {
	for _, c := range bpfReads {
		mask |= 1 << c
	}
	return mask
}

// What there is of rtnetlink, in the order of its types, each NEW, DEL, GET and SET.
var routeObjects = []string{"LINK", "ADDR", "ROUTE", "NEIGH", "RULE", "QDISC", "TCLASS", "TFILTER"}

// String tells a step by its name.
func (r record) String() string {
	name := changing[r.Number].name
	switch name {
	case "bpf":
		if known, ok := bpfChanges[r.Detail]; ok {
			name += " " + known
		} else {
			name += fmt.Sprintf(" command %d", r.Detail)
		}
	case "netlink":
		name += " " + message(uint32(r.Detail), uint32(r.Detail>>32))
	}
	if path, _, _ := bytes.Cut(r.Path[:], []byte{0}); len(path) > 0 {
		name += " " + string(path)
	}
	return fmt.Sprintf("%s (process %d)", name, r.PID)
}

// message names one of netlink.
func message(kind, length uint32) string {
	object, verb := (kind-unix.RTM_BASE)/4, kind%4
	switch {
	case kind == unix.NFNL_MSG_BATCH_BEGIN && length == unix.SizeofNlMsghdr+4:
		return "nftables"
	case kind == ctNew, kind == ctDelete:
		return "conntrack"
	case int(object) < len(routeObjects):
		return "RTM_" + []string{"NEW", "DEL", "GET", "SET"}[verb] + routeObjects[object]
	}
	return fmt.Sprintf("type %d", kind)
}
