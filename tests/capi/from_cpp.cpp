// The header in a C++ program with a C part: included twice here, once there.
#include <longgen.h>
#include <longgen.h>

#include <cstring>
#include <memory>

extern "C" uint32_t version_in_c(void);

int main(int argc, char **argv)
{
    if (argc != 2 || version_in_c() != lg_version())
        return 1;
    lg_error error{};
    error.struct_size = sizeof error;
    lg_model *opened = nullptr;
    if (lg_model_open(argv[1], nullptr, &opened, &error) != LG_OK)
        return 1;
    std::unique_ptr<lg_model, decltype(&lg_model_free)> model(opened, lg_model_free);
    lg_session *session = nullptr;
    lg_status status = lg_session_new(nullptr, nullptr, &session, &error);
    return status == LG_ERR_INVALID && std::strcmp(error.where, "lg_session_new") == 0 ? 0 : 1;
}
