/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's TLS; see tls_kernel.h. */
#include "tls_kernel.h"

#include <errno.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/crypto.h>
#include <string.h>
#include <sys/socket.h>

#ifndef SOL_TLS /* of older headers */
#define SOL_TLS 282
#endif

/* What a control message of this size takes, aligned. */
union control {
    char bytes[CMSG_SPACE(sizeof(unsigned char))];
    struct cmsghdr align;
};

bool tls_kernel_attach(int fd)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) == 0;
}

/* The two of AES-GCM differ in the size of the key alone: the nonce's first four bytes are called salt. */
union crypto {
    struct tls_crypto_info info;
    struct tls12_crypto_info_aes_gcm_128 aes_128;
    struct tls12_crypto_info_aes_gcm_256 aes_256;
    struct tls12_crypto_info_chacha20_poly1305 chacha;
};

/* Return: the size of *@out. */
static socklen_t describe(const struct tls_material *from, union crypto *out)
{
    out->info.version = TLS_1_3_VERSION;
    switch (from->cipher) {
    case TLS_AES_128:
        out->info.cipher_type = TLS_CIPHER_AES_GCM_128;
        memcpy(out->aes_128.key, from->key, sizeof(out->aes_128.key));
        memcpy(out->aes_128.salt, from->iv, sizeof(out->aes_128.salt));
        memcpy(out->aes_128.iv, from->iv + sizeof(out->aes_128.salt), sizeof(out->aes_128.iv));
        return sizeof(out->aes_128);
    case TLS_AES_256:
        out->info.cipher_type = TLS_CIPHER_AES_GCM_256;
        memcpy(out->aes_256.key, from->key, sizeof(out->aes_256.key));
        memcpy(out->aes_256.salt, from->iv, sizeof(out->aes_256.salt));
        memcpy(out->aes_256.iv, from->iv + sizeof(out->aes_256.salt), sizeof(out->aes_256.iv));
        return sizeof(out->aes_256);
    default:
        out->info.cipher_type = TLS_CIPHER_CHACHA20_POLY1305;
        memcpy(out->chacha.key, from->key, sizeof(out->chacha.key));
        memcpy(out->chacha.iv, from->iv, sizeof(out->chacha.iv));
        return sizeof(out->chacha);
    }
}

int tls_kernel_take(int fd, const struct tls_key *key)
{
    struct tls_material material;
    union crypto crypto = {0};

    if (tls_key_material(key, &material) < 0)
        return -EIO;
    socklen_t size = describe(&material, &crypto);
    int ret = setsockopt(fd, SOL_TLS, material.seals ? TLS_TX : TLS_RX, &crypto, size) < 0 ? -errno : 0;
    OPENSSL_cleanse(&material, sizeof(material));
    OPENSSL_cleanse(&crypto, sizeof(crypto));
    return ret;
}

ssize_t tls_kernel_send(int fd, enum tls_content type, const void *content, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)content, len};
    union control control = {0};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&msg);

    header->cmsg_level = SOL_TLS;
    header->cmsg_type = TLS_SET_RECORD_TYPE;
    header->cmsg_len = CMSG_LEN(1);
    *CMSG_DATA(header) = (unsigned char)type;
    msg.msg_controllen = header->cmsg_len;
    ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? -errno : n;
}

ssize_t tls_kernel_receive(int fd, enum tls_content *type, void *content, size_t len)
{
    struct iovec iov = {content, len};
    union control control = {0};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT);

    if (n < 0)
        return -errno;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
    *type = TLS_DATA;
    if (header && header->cmsg_level == SOL_TLS && header->cmsg_type == TLS_GET_RECORD_TYPE)
        *type = *CMSG_DATA(header);
    return n;
}
