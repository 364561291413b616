/* SPDX-License-Identifier: Apache-2.0
 *
 * The network of a run that is isolated: lo alone, with an address and a route that programs can
 * live with.
 *
 * getaddrinfo(3) with AI_ADDRCONFIG counts no loopback address, and many programs find their own
 * address by a route to the outside. So lo gets a private address, and a default route of type
 * "local": each address is this machine, and as nobody listens there, a connection is refused at
 * once. (A route of type "unicast" would lose the packets: a connection would wait for minutes.)
 */
#define _GNU_SOURCE
#include "child.h"

#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { LO = 1, LAST = 65535 }; /* the index of lo in a new namespace; a metric after all others */
#define ADDRESS_4                                                                                  \
    { 10, 0, 2, 15 }
#define ADDRESS_6                                                                                  \
    { 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 2, 15 }

struct number {
    struct rtattr head;
    uint32_t value;
};
struct address_4 {
    struct rtattr head;
    uint8_t bytes[4];
};
struct address_6 {
    struct rtattr head;
    uint8_t bytes[16];
};
struct request_link {
    struct nlmsghdr head;
    struct ifinfomsg link;
};
struct request_address_4 {
    struct nlmsghdr head;
    struct ifaddrmsg address;
    struct address_4 local;
};
struct request_address_6 {
    struct nlmsghdr head;
    struct ifaddrmsg address;
    struct address_6 local;
};
struct request_route_4 {
    struct nlmsghdr head;
    struct rtmsg route;
    struct number device, metric;
    struct address_4 source;
};
struct request_route_6 {
    struct nlmsghdr head;
    struct rtmsg route;
    struct number device, metric;
};

/* clang-format off */
#define HEAD(type, kind, sequence) {sizeof(struct kind), type, NLM_F_REQUEST | NLM_F_CREATE, sequence, 0}
#define ATTRIBUTE(kind, type) {sizeof(struct kind), type}
#define ROUTE(family, scope) {family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_LOCAL, 0}

/* rtnetlink(7). One message has all of it, because each system call counts. The kernel does one
 * request after the other, and answers those alone that fail. */
static const struct {
    struct request_link up;
    struct request_address_4 address_4;
    struct request_route_4 route_4;
    struct request_address_6 address_6;
    struct request_route_6 route_6;
} requests = {
    {{sizeof(struct request_link), RTM_NEWLINK, NLM_F_REQUEST, 1, 0},
     {.ifi_index = LO, .ifi_flags = IFF_UP, .ifi_change = IFF_UP}},
    {HEAD(RTM_NEWADDR, request_address_4, 2), {AF_INET, 32, 0, RT_SCOPE_UNIVERSE, LO},
     {ATTRIBUTE(address_4, IFA_LOCAL), ADDRESS_4}},
    {HEAD(RTM_NEWROUTE, request_route_4, 3), ROUTE(AF_INET, RT_SCOPE_HOST),
     {ATTRIBUTE(number, RTA_OIF), LO}, {ATTRIBUTE(number, RTA_PRIORITY), LAST},
     {ATTRIBUTE(address_4, RTA_PREFSRC), ADDRESS_4}},
    {HEAD(RTM_NEWADDR, request_address_6, 4), {AF_INET6, 128, IFA_F_NODAD, RT_SCOPE_UNIVERSE, LO},
     {ATTRIBUTE(address_6, IFA_LOCAL), ADDRESS_6}},
    {HEAD(RTM_NEWROUTE, request_route_6, 5), ROUTE(AF_INET6, RT_SCOPE_UNIVERSE),
     {ATTRIBUTE(number, RTA_OIF), LO}, {ATTRIBUTE(number, RTA_PRIORITY), LAST}},
};
/* clang-format on */

/* Without rtnetlink, which a filter of the host may close, lo has 127.0.0.1 and ::1 alone. */
static int bring_up(void) {
    struct ifreq request = {.ifr_name = "lo"};
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    long fd = raw(__NR_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return (int)fd;
    long result = raw(__NR_ioctl, fd, SIOCSIFFLAGS, &request);
    close_fd(fd);
    return (int)result;
}

static int send_requests(long fd) {
    struct {
        struct nlmsghdr head;
        struct nlmsgerr failure;
        char request[128];
    } answer;
    int error = 0;
    long n = raw(__NR_sendto, fd, &requests, sizeof requests, 0, 0, 0);
    while (n > 0) {
        n = raw(__NR_recvfrom, fd, &answer, sizeof answer, MSG_DONTWAIT, 0, 0);
        if (n > 0 && answer.failure.msg.nlmsg_seq == requests.up.head.nlmsg_seq)
            error = answer.failure.error;
    }
    return n == -EAGAIN || error < 0 ? error : (int)n;
}

/* Fails if lo cannot be brought up. A kernel without IPv4 or IPv6 lacks the addresses of these. */
int do_loopback(struct sbx_child *c) {
    int stays = c->place->reaper == SBX_RESIDENT;
    if (stays)
        close_fd(RESIDENT_ROUTES_FD); /* it may be the caller's */
    if (!(c->place->namespaces & CLONE_NEWNET))
        return 0;
    long fd =
        raw(__NR_socket, AF_NETLINK, SOCK_RAW | (stays ? 0 : SOCK_CLOEXEC), 0 /* NETLINK_ROUTE */);
    if (fd < 0)
        return bring_up();
    static const struct sockaddr_nl last = {.nl_family = AF_NETLINK, .nl_pid = 0x7fffffff};
    if (stays) /* the kernel would give it the number of pid 1, which a command may want */
        raw(__NR_bind, fd, &last, sizeof last);
    int error = send_requests(fd);
    if (stays && fd == RESIDENT_ROUTES_FD)
        return error;
    if (stays && error >= 0)
        error = (int)raw(__NR_dup3, fd, RESIDENT_ROUTES_FD, 0);
    close_fd(fd);
    return error;
}
