/* Stand-in for libamd_smi.so, enough for the real amdsmi (layouts of 7.0) to take an inventory and live
 * figures. The wrapper binds every symbol at its import: build.py adds those that are missing here, each
 * answering "not supported".
 *
 * STANDIN_AMDSMI_CARDS  cards, see cards.h. Fields: gfx (1151; ffffffffffffffff as on unsupported cards), name,
 *                       vram_mb, vram_used_mb, gtt_mb, gtt_used_mb, bdf (0000:c1:00.0), hip (HIP's index).
 *                       procs: what runs there, "4711:1024:512+..." (process id:MB of VRAM:MB of GTT).
 *                       Queries for rc_QUERY: processes, asic, memory, gtt, bdf, enumeration, uuid, driver, activity,
 *                       edge, power.
 * STANDIN_AMDSMI_INIT   status of amdsmi_init (34: driver not loaded, 10: no permission)
 * STANDIN_AMDSMI_FAULT  hang, crash or print, in init or memory, see cards.h
 */
#include "cards.h"

typedef int amdsmi_status_t;
enum { SUCCESS = 0, INVALID = 1, NOT_SUPPORTED = 2 };

enum { MEMORY_VRAM = 0, MEMORY_GTT = 2 };

#define TEXT_SIZE 256
#define NO_FIGURE_16 0xFFFFu
#define CARD_HANDLES 0x1000u
#define SOCKET_HANDLES 0x2000u

static struct machine machine;

static struct card *card_of(void *handle)
{
    uintptr_t number = (uintptr_t)handle - CARD_HANDLES;
    return number < machine.card_count ? &machine.cards[number] : NULL;
}

static unsigned index_of(const struct card *card)
{
    return (unsigned)(card - machine.cards);
}

#define CARD_OR_RETURN(query)                        \
    struct card *card = card_of(handle);             \
    if (!card)                                       \
        return INVALID;                              \
    if (told_to_fail(card, query))                   \
        return told_to_fail(card, query)

amdsmi_status_t amdsmi_init(uint64_t flags)
{
    (void)flags;
    misbehave("STANDIN_AMDSMI_FAULT", "init");
    read_machine(&machine, "STANDIN_AMDSMI_CARDS");
    const char *status = getenv("STANDIN_AMDSMI_INIT");
    return status ? atoi(status) : SUCCESS;
}

amdsmi_status_t amdsmi_shut_down(void) { return SUCCESS; }

/* One socket for each card, as on real machines. */
amdsmi_status_t amdsmi_get_socket_handles(uint32_t *count, void **handles)
{
    for (uint32_t i = 0; handles && i < *count && i < machine.card_count; i++)
        handles[i] = (void *)(uintptr_t)(SOCKET_HANDLES + i);
    *count = machine.card_count;
    return SUCCESS;
}

amdsmi_status_t amdsmi_get_processor_handles(void *socket, uint32_t *count, void **handles)
{
    uintptr_t number = (uintptr_t)socket - SOCKET_HANDLES;
    if (number >= machine.card_count)
        return INVALID;
    if (handles)
        handles[0] = (void *)(CARD_HANDLES + number);
    *count = 1;
    return SUCCESS;
}

struct __attribute__((packed)) asic_info {
    char market_name[TEXT_SIZE];
    uint32_t vendor_id;
    char vendor_name[TEXT_SIZE];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t rev_id;
    char asic_serial[TEXT_SIZE];
    uint32_t oam_id, compute_units, padding;
    uint64_t target_graphics_version;
    uint32_t subsystem_id, reserved[21];
};
_Static_assert(sizeof(struct asic_info) == 3 * TEXT_SIZE + 12 + 8 + 12 + 8 + 88, "amdsmi_asic_info_t of 7.0");

amdsmi_status_t amdsmi_get_gpu_asic_info(void *handle, struct asic_info *info)
{
    CARD_OR_RETURN("asic");
    memset(info, 0, sizeof *info);
    snprintf(info->market_name, TEXT_SIZE, "%s", text_of(card, "name", "AMD Stand-in"));
    snprintf(info->vendor_name, TEXT_SIZE, "Advanced Micro Devices, Inc. [AMD/ATI]");
    snprintf(info->asic_serial, TEXT_SIZE, "%016X", 0xA0000u + index_of(card));
    info->vendor_id = info->subvendor_id = 0x1002;
    info->device_id = 0x1586;
    info->oam_id = UINT32_MAX;
    info->compute_units = 40;
    info->target_graphics_version = strtoull(text_of(card, "gfx", "1100"), NULL, 16);
    return SUCCESS;
}

static uint64_t megabytes_of(const struct card *card, uint32_t kind, const char *vram, const char *gtt)
{
    return number_of(card, kind == MEMORY_GTT ? gtt : vram, 0) << 20;
}

amdsmi_status_t amdsmi_get_gpu_memory_total(void *handle, uint32_t kind, uint64_t *bytes)
{
    misbehave("STANDIN_AMDSMI_FAULT", "memory");
    CARD_OR_RETURN(kind == MEMORY_GTT ? "gtt" : "memory");
    *bytes = megabytes_of(card, kind, "vram_mb", "gtt_mb");
    return SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_memory_usage(void *handle, uint32_t kind, uint64_t *bytes)
{
    CARD_OR_RETURN(kind == MEMORY_GTT ? "gtt" : "memory");
    *bytes = megabytes_of(card, kind, "vram_used_mb", "gtt_used_mb");
    if (kind == MEMORY_VRAM)
        *bytes += held_megabytes(card) << 20;
    return SUCCESS;
}

/* A PCI address as one number: function 3 bits, device 5, bus 8, domain above. */
amdsmi_status_t amdsmi_get_gpu_device_bdf(void *handle, uint64_t *bdf)
{
    CARD_OR_RETURN("bdf");
    unsigned domain = 0, bus = index_of(card) + 1, device = 0, function = 0;
    sscanf(text_of(card, "bdf", ""), "%x:%x:%x.%x", &domain, &bus, &device, &function);
    *bdf = function | device << 3 | bus << 8 | (uint64_t)domain << 16;
    return SUCCESS;
}

amdsmi_status_t amdsmi_get_gpu_device_uuid(void *handle, uint32_t *size, char *text)
{
    CARD_OR_RETURN("uuid");
    snprintf(text, *size, "%02xff1586-0000-1000-8000-0000000a0000", index_of(card));
    return SUCCESS;
}

struct __attribute__((packed)) enumeration_info {
    uint32_t drm_render, drm_card, hsa_id, hip_id;
    char hip_uuid[TEXT_SIZE];
};

amdsmi_status_t amdsmi_get_gpu_enumeration_info(void *handle, struct enumeration_info *info)
{
    CARD_OR_RETURN("enumeration");
    memset(info, 0, sizeof *info);
    info->hip_id = (uint32_t)number_of(card, "hip", index_of(card));
    info->hsa_id = info->hip_id + 1;
    info->drm_card = index_of(card);
    info->drm_render = 128 + index_of(card);
    /* An APU has no serial number to make a UUID from: the real library says "GPU-XX" there. */
    if (number_of(card, "gtt_mb", 0))
        snprintf(info->hip_uuid, TEXT_SIZE, "GPU-XX");
    else
        snprintf(info->hip_uuid, TEXT_SIZE, "GPU-%016x", 0xA0000u + index_of(card));
    return SUCCESS;
}

struct driver_info {
    char version[TEXT_SIZE], date[TEXT_SIZE], name[TEXT_SIZE];
};

amdsmi_status_t amdsmi_get_gpu_driver_info(void *handle, struct driver_info *info)
{
    CARD_OR_RETURN("driver");
    memset(info, 0, sizeof *info);
    snprintf(info->version, TEXT_SIZE, "6.14.14");
    snprintf(info->name, TEXT_SIZE, "amdgpu");
    return SUCCESS;
}

struct engine_usage {
    uint32_t gfx, umc, mm, reserved[13];
};

amdsmi_status_t amdsmi_get_gpu_activity(void *handle, struct engine_usage *usage)
{
    CARD_OR_RETURN("activity");
    memset(usage, 0, sizeof *usage);
    usage->gfx = 37;
    usage->umc = 12;
    usage->mm = NO_FIGURE_16;
    return SUCCESS;
}

enum { SENSOR_EDGE = 0, SENSOR_HOTSPOT = 1 };

amdsmi_status_t amdsmi_get_temp_metric(void *handle, uint32_t sensor, uint32_t metric, int64_t *celsius)
{
    (void)metric;
    CARD_OR_RETURN(sensor == SENSOR_EDGE ? "edge" : "hotspot");
    *celsius = sensor == SENSOR_EDGE ? 54 : 61;
    return sensor == SENSOR_EDGE || sensor == SENSOR_HOTSPOT ? SUCCESS : NOT_SUPPORTED;
}

struct __attribute__((packed)) power_info {
    uint64_t socket_power;
    uint32_t current_socket_power, average_socket_power;
    uint64_t gfx_voltage, soc_voltage, mem_voltage;
    uint32_t power_limit, padding;
    uint64_t reserved[18];
};

amdsmi_status_t amdsmi_get_power_info(void *handle, struct power_info *info)
{
    CARD_OR_RETURN("power");
    memset(info, 0, sizeof *info);
    info->socket_power = 45;
    info->current_socket_power = NO_FIGURE_16; /* as on cards that only give the average */
    info->average_socket_power = 44;
    return SUCCESS;
}

struct __attribute__((packed)) process_info {
    char name[TEXT_SIZE];
    uint32_t pid, padding;
    uint64_t mem, gfx_time, enc_time;
    uint32_t engine_reserved[12];
    uint64_t gtt_mem, cpu_mem, vram_mem;
    uint32_t memory_reserved[10];
    char container_name[TEXT_SIZE];
    uint32_t cu_occupancy, reserved[11];
};
_Static_assert(sizeof(struct process_info) == 2 * TEXT_SIZE + 8 + 24 + 48 + 24 + 40 + 48, "amdsmi_proc_info_t of 7.0");

amdsmi_status_t amdsmi_get_gpu_process_list(void *handle, uint32_t *count, struct process_info *list)
{
    CARD_OR_RETURN("processes");
    char text[MAX_TEXT], *rest = NULL;
    uint32_t found = 0;
    snprintf(text, sizeof text, "%s", text_of(card, "procs", ""));
    for (char *part = strtok_r(text, "+", &rest); part && found < *count; part = strtok_r(NULL, "+", &rest)) {
        unsigned long long pid = 0, vram = 0, gtt = 0;
        if (sscanf(part, "%llu:%llu:%llu", &pid, &vram, &gtt) != 3)
            abort();
        struct process_info *info = &list[found++];
        memset(info, 0, sizeof *info);
        snprintf(info->name, TEXT_SIZE, "engine");
        info->pid = (uint32_t)pid;
        info->mem = info->vram_mem = vram << 20;
        info->gtt_mem = gtt << 20;
    }
    struct holder holders[MAX_HOLDERS];
    for (unsigned i = 0, held = read_holders(card, holders); i < held && found < *count; i++) {
        struct process_info *info = &list[found++];
        memset(info, 0, sizeof *info);
        snprintf(info->name, TEXT_SIZE, "engine");
        info->pid = holders[i].pid;
        info->mem = info->vram_mem = holders[i].megabytes << 20;
    }
    *count = found;
    return SUCCESS;
}
